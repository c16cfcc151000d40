"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from draftsmith.provenance import version
from draftsmith.server import metrics
from draftsmith.server.fields import Strict
from draftsmith.server.generation import Generation
from draftsmith.server.guard import Guard, send_json
from draftsmith.server.markdown import to_tree
from draftsmith.server.moderation import Moderator
from draftsmith.server.openapi import openapi_document
from draftsmith.server.options import ServerOptions
from draftsmith.server.page import page_routes
from draftsmith.server.problems import ApiError, as_api_error
from draftsmith.server.respond import Answer
from draftsmith.server.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Generate,
    RenderRequest,
    TokenizeRequest,
    parse,
)
from draftsmith.server.service import Service
from draftsmith.server.shapes import ChatShape, CompletionShape, Shape, Stamp

__all__ = ["build_app"]

Body = TypeVar("Body", bound=Strict)


def build_app(service: Service, options: ServerOptions) -> Guard:
    """The whole application, guarded. ``service`` is used, not closed."""
    api = Api(service, options)
    routes = [
        Route("/v1/chat/completions", _plain(api.chat), methods=["POST"]),
        Route("/v1/completions", _plain(api.complete), methods=["POST"]),
        Route("/v1/models", _plain(api.models), methods=["GET"]),
        Route("/v1/models/{name:path}", _plain(api.model), methods=["GET"]),
        Route("/tokenize", _plain(api.tokenize), methods=["POST"]),
        Route("/detokenize", _plain(api.detokenize), methods=["POST"]),
        Route("/tokenizer_info", _plain(api.tokenizer_info), methods=["GET"]),
        Route("/render", _plain(api.render), methods=["POST"]),
        Route("/health", _plain(api.health), methods=["GET"]),
        Route("/ready", _plain(api.ready), methods=["GET"]),
        Route("/metrics", _plain(api.metrics), methods=["GET"]),
        Route("/openapi.json", _plain(api.openapi), methods=["GET"]),
        *page_routes(),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_problem})
    app.router.redirect_slashes = False  # it would answer with the caller's Host
    api.guard = Guard(app, options)
    return api.guard


class Api:
    """The endpoints: each takes a request and gives what answers it. Raises ApiError."""

    guard: Guard

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service = service
        self._options = options
        self._moderator = Moderator(options.moderate) if options.moderate is not None else None

    async def chat(self, request: Request) -> ASGIApp:
        """/v1/chat/completions."""
        body = await self._body(request, ChatRequest)
        await self._moderate([one.message.content for one in body.messages])
        prompt = await self._service.encode_chat(body.messages, tools=body.shown_tools)
        constraint = await self._service.compile(body)
        stops = self._service.model.prompt_format.stop_strings
        generation = self._service.submit(body, [prompt], param="messages", extra_stops=stops, constraint=constraint)
        tokenizer, stamp = self._service.model.tokenizer, Stamp(self._service.model.name)
        names = [tool.function.name for tool in body.usable_tools]
        shape = ChatShape(stamp, tokenizer, logprobs=body.logprobs, pieces=body.return_pieces, tools=names)
        return self._answer(body, shape, generation)

    async def complete(self, request: Request) -> ASGIApp:
        """/v1/completions."""
        body = await self._body(request, CompletionRequest)
        tokenizer = self._service.model.tokenizer
        await self._moderate([p if isinstance(p, str) else await self._service.decode(p) for p in body.prompts])
        prompts = [
            await self._service.encode_text(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompts
        ]
        constraint = await self._service.compile(body)
        generation = self._service.submit(
            body,
            prompts,
            param="prompt",
            constraint=constraint,
            prompt_logprobs=body.logprobs if body.echo else None,
        )
        echoed: list[str] = []
        if body.echo:
            texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in body.prompts]
            echoed = [text for text in texts for _ in range(body.n)]
        shape = CompletionShape(
            Stamp(self._service.model.name),
            tokenizer,
            logprobs=body.logprobs is not None,
            pieces=body.return_pieces,
            by_id=body.return_tokens_as_token_ids,
            echoed=echoed,
            handles=[choice.handle for choice in generation.choices],
        )
        return self._answer(body, shape, generation)

    async def _moderate(self, texts: Sequence[str]) -> None:
        """Raises ApiError where the prompt may not be answered."""
        if self._moderator is not None:
            await self._moderator.check("prompt", "\n".join(texts))

    def _answer(self, body: Generate, shape: Shape, generation: Generation) -> ASGIApp:
        return Answer(
            generation,
            shape,
            stream=body.stream,
            include_usage=body.stream_options.include_usage,
            continuous_usage=body.stream_options.continuous_usage_stats,
            live=body.return_pieces,
            send_s=self._options.send_s,
            pace_s=self._options.pace_s,
            moderator=self._moderator,
        )

    async def models(self, _request: Request) -> ASGIApp:
        """/v1/models."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> ASGIApp:
        """/v1/models/NAME."""
        self._service.check_model(request.path_params["name"])
        return JSONResponse(self._card())

    def _card(self) -> dict[str, object]:
        model = self._service.model
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "draftsmith",
            "max_model_len": model.context,
            "drafter": model.drafter,
            "safety": "none",
        }

    async def tokenize(self, request: Request) -> ASGIApp:
        """/tokenize, as vLLM's."""
        body = await self._body(request, TokenizeRequest)
        if body.messages is not None:
            ids = await self._service.encode_chat(body.messages, add_generation_prompt=body.add_generation_prompt)
        else:
            ids = await self._service.encode_text(body.prompt or "", add_bos=None if body.add_special_tokens else False)
        return JSONResponse({"count": len(ids), "max_model_len": self._service.model.context, "tokens": ids})

    async def detokenize(self, request: Request) -> ASGIApp:
        """/detokenize, as vLLM's."""
        body = await self._body(request, DetokenizeRequest)
        return JSONResponse({"prompt": await self._service.decode(body.tokens)})

    async def tokenizer_info(self, _request: Request) -> ASGIApp:
        """/tokenizer_info, as vLLM's: what a client needs that leaves tokenizing to us."""
        tokenizer = self._service.model.tokenizer

        def text(token_id: int | None) -> str | None:
            return tokenizer.text_of(token_id) if token_id is not None else None

        info = {
            "tokenizer_class": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": self._service.model.context,
            "add_bos_token": tokenizer.add_bos,
            "bos_token": text(tokenizer.bos_id),
            "eos_token": text(next(iter(tokenizer.eos_ids), None)),
            "pad_token": text(tokenizer.pad_id),
            "unk_token": text(tokenizer.unk_id),
            "chat_template": tokenizer.chat_template,
        }
        return JSONResponse(info)

    async def render(self, request: Request) -> ASGIApp:
        """/render: Markdown as a tree of elements, for the chat page."""
        body = await self._body(request, RenderRequest)
        return JSONResponse({"nodes": await self._service.aside(lambda: to_tree(body.text), "text")})

    async def health(self, _request: Request) -> ASGIApp:
        """/health: the server is alive."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> ASGIApp:
        """/ready: the server takes requests."""
        if self.guard.draining:
            return JSONResponse({"status": "draining"}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, _request: Request) -> ASGIApp:
        """/metrics, for Prometheus."""
        text = self._service.metrics.text(self._service.engine.stats)
        return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)

    async def openapi(self, _request: Request) -> ASGIApp:
        """/openapi.json."""
        return JSONResponse(openapi_document(version(), keys=bool(self._options.api_keys)))

    async def _body(self, request: Request, kind: type[Body]) -> Body:
        """The request's body, read within bounds of size and time, and checked."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be JSON; send Content-Type: application/json", code="content_type")
        try:
            data = await asyncio.wait_for(self._read(request), self._options.body_s)
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", code="timeout") from None
        if issubclass(kind, Generate):
            self._service.check_room()
        body = parse(kind, data)
        self._service.check_model(getattr(body, "model", None))
        return body

    async def _read(self, request: Request) -> bytes:
        limit, data = self._options.max_body, bytearray()
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limit:
            raise ApiError(413, f"the body is larger than {limit} bytes; send less", code="too_large")
        async for part in request.stream():
            data += part
            if len(data) > limit:
                raise ApiError(413, f"the body is larger than {limit} bytes; send less", code="too_large")
        return bytes(data)


Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def _plain(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """``endpoint`` with its errors as answers; whatever goes wrong, the server goes on."""

    async def run(request: Request) -> Response:
        try:
            answer = await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except Exception as error:
            answer = _Problem(as_api_error(error))
        return answer  # type: ignore[return-value]  # Starlette calls what it gets; it need not be a Response

    return run


class _Problem:
    """An ASGI application that answers with an error."""

    def __init__(self, error: ApiError) -> None:
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's signature
        await send_json(send, self._error.status, self._error.body(), self._error.headers)


async def _http_problem(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, not with this method) in the same form."""
    if not isinstance(error, HTTPException):
        raise error
    message = {404: "there is nothing at this path", 405: "the path does not take this method"}
    problem = ApiError(error.status_code, message.get(error.status_code, str(error.detail)), code="not_found")
    return JSONResponse(problem.body(), status_code=error.status_code, headers=error.headers)
