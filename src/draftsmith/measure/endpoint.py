"""An OpenAI-compatible endpoint as a client sees it: when a reply began, when it ended, its tokens.

Served by llama-server, vLLM, SGLang, ``draftsmith serve`` and others. Replies are streamed. Tokens are counted by the
endpoint itself (``stream_options.include_usage``); where it does not, chunks with text are counted, and that is said.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.types import Message, SamplingParams

__all__ = ["Endpoint", "Kind", "Refused", "Streamed", "find_endpoint", "key_from_environment"]

Kind = Literal["draftsmith", "llama.cpp", "vllm", "sglang", "unknown"]
KEYS = ("DRAFTSMITH_ENDPOINT_KEY", "OPENAI_API_KEY")
CONNECT_S, REPLY_S = 10.0, 600.0
MAX_LINE, MAX_ANSWER = 1 << 22, 1 << 26
_OWNERS: Mapping[str, Kind] = {"draftsmith": "draftsmith", "llamacpp": "llama.cpp", "vllm": "vllm", "sglang": "sglang"}
_OWN_FIELDS: Mapping[Kind, Mapping[str, Any]] = {"llama.cpp": {"cache_prompt": False}}
_NO_DRAFT: Mapping[Kind, Mapping[str, Any]] = {
    "draftsmith": {"draft": False},
    "llama.cpp": {"speculative.n_max": 0},
}


class Refused(UsageError):
    """The endpoint does not take this one request, a prompt that is too long for example; others may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """One reply. ``first_s``: from sending the request to the first text; ``rest_s``: from there to its end.

    ``counted``: who counted the tokens. ``drafted`` and ``accepted``: draft tokens, where the endpoint tells.
    """

    text: str
    num_tokens: int
    counted: Literal["endpoint", "chunks"]
    first_s: float
    rest_s: float
    drafted: int | None = None
    accepted: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """``address`` ends before ``/chat/completions``. ``key`` goes to this endpoint only, and into no result.

    ``chat``: messages go to ``/chat/completions``; else text goes to ``/completions`` as it stands. ``fields`` are
    added to every request.
    """

    address: str
    model: str
    kind: Kind = "unknown"
    chat: bool = True
    key: str | None = field(default=None, repr=False)
    fields: Mapping[str, Any] = field(default_factory=dict)

    def without_drafting(self) -> Endpoint:
        """The same endpoint, asked to write plainly. Raises UsageError where a request cannot ask for that."""
        fields = _NO_DRAFT.get(self.kind)
        if fields is None:
            raise UsageError(
                f"a request to {self.address} ({self.kind}) cannot switch drafting off; start a second server without "
                "a draft and give it with another --endpoint"
            )
        return Endpoint(
            address=self.address,
            model=self.model,
            kind=self.kind,
            chat=self.chat,
            key=self.key,
            fields={**self.fields, **fields},
        )

    def ask(self, asked: Sequence[Message] | str, sampling: SamplingParams) -> Streamed:
        """One reply, streamed. Raises Refused for this request, UsageError for what no request will get past
        (key, model, shape), DraftsmithError when the endpoint cannot be reached or breaks off."""
        body = {
            "model": self.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({} if sampling.greedy else {"top_p": sampling.top_p, "seed": sampling.seed or 0}),
            **({"ignore_eos": True} if sampling.ignore_eos else {}),
            **_OWN_FIELDS.get(self.kind, {}),
            **self.fields,
        }
        if isinstance(asked, str):
            body["prompt"] = asked
        else:
            body["messages"] = [{"role": message.role, "content": message.content} for message in asked]
        path = "/chat/completions" if self.chat else "/completions"
        began, chunks = 0.0, list[tuple[float, Any]]()
        connection, response, began = _send(self.address, "POST", path, self.key, body)
        try:
            if "event-stream" not in (response.getheader("content-type") or ""):
                _wrong_shape(self.address + path, "answered as a whole where a stream was asked for")
            chunks = [(time.perf_counter(), chunk) for chunk in _events(response, self.address + path)]
        except TimeoutError:
            raise DraftsmithError(f"{self.address} sent nothing for {REPLY_S:.0f} seconds; is it overloaded?") from None
        except (OSError, http.client.HTTPException) as error:
            raise DraftsmithError(f"{self.address} broke off a reply ({_why(error)}); look at its log") from None
        finally:
            _close(connection, response)
        return _streamed(chunks, began, self.address + path, chat=self.chat)


def key_from_environment() -> str | None:
    """The API key in DRAFTSMITH_ENDPOINT_KEY or OPENAI_API_KEY, if there is one."""
    return next((os.environ[name] for name in KEYS if os.environ.get(name)), None)


def find_endpoint(address: str, model: str | None = None, *, chat: bool = True, key: str | None = None) -> Endpoint:
    """The endpoint at ``address``; its only model where none is named, which ``/models`` tells.

    Raises UsageError for an address that is none, a key that is refused, and when there are several models or none;
    DraftsmithError when nobody answers.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--endpoint is {address!r}; give an address such as http://127.0.0.1:8000/v1")
    if "@" in parts.netloc:
        raise UsageError("--endpoint holds a name or password, which would be kept with the result; leave it out")
    base = address.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1"
    connection, response, _ = _send(base, "GET", "/models", key, None)
    try:
        listed = json.loads(response.read(MAX_ANSWER))
        models = {str(entry["id"]): str(entry.get("owned_by", "")) for entry in listed["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        _wrong_shape(base + "/models", "gave no list of models")
    except (OSError, http.client.HTTPException) as error:
        raise DraftsmithError(f"{base} broke off its answer ({_why(error)}); look at its log") from None
    finally:
        _close(connection, response)
    if model is None:
        if len(models) != 1:
            names = ", ".join(sorted(models)[:8]) or "none"
            raise UsageError(f"{base} has {len(models)} models ({names}); name one with --endpoint-model")
        [model] = models
    owner = models.get(model) or next(iter(models.values()), "")
    return Endpoint(address=base, model=model, kind=_OWNERS.get(owner, "unknown"), chat=chat, key=key)


def _send(
    base: str, method: str, path: str, key: str | None, body: Mapping[str, Any] | None
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, float]:
    """A connection, its answer with status 200, and when the request went out."""
    parts = urlsplit(base)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/json", "Accept": "*/*", "User-Agent": "draftsmith"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=CONNECT_S)
    except ValueError as error:
        raise UsageError(f"--endpoint is {base}, which is no address ({error})") from None
    try:
        connection.connect()
        connection.sock.settimeout(REPLY_S)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        connection.request(method, parts.path + path, None if body is None else json.dumps(body).encode(), headers)
        response = connection.getresponse()
    except ssl.SSLError as error:
        connection.close()
        raise DraftsmithError(f"{base} has no certificate that can be trusted ({_why(error)})") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        connection.close()
        raise DraftsmithError(
            f"{base} cannot be reached ({_why(error)}); start the server, or give another --endpoint"
        ) from None
    if response.status != 200:
        reason = _said(response)
        _close(connection, response)
        _refuse(base, path, response.status, reason, known_key=key is not None, asked=body)
    return connection, response, began


def _close(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
    response.close()
    connection.close()


def _refuse(
    base: str, path: str, status: int, reason: str, *, known_key: bool, asked: Mapping[str, Any] | None
) -> NoReturn:
    if status in (401, 403):
        what = "does not accept this API key" if known_key else "wants an API key"
        raise UsageError(
            f"{base} {what} ({status}); give it with --api-key-file FILE, or in DRAFTSMITH_ENDPOINT_KEY or "
            "OPENAI_API_KEY"
        )
    if status == 404 and asked is not None and "model" in reason.lower():
        raise UsageError(f"{base} has no model {asked['model']!r} ({reason}); name one with --endpoint-model")
    if status in (404, 405):
        raise UsageError(f"{base}{path} does not exist ({status}); --endpoint must end before it, mostly in /v1")
    if 300 <= status < 400:
        raise UsageError(f"{base}{path} sends elsewhere ({status}); give the address that it points to")
    if status in (400, 413, 422):
        raise Refused(f"{base}{path} refused the request: {status} {reason}")
    raise DraftsmithError(f"{base}{path} failed: {status} {reason}; look at its log and try again")


def _events(response: http.client.HTTPResponse, url: str) -> Iterator[Any]:
    """The JSON objects of a stream of server-sent events, as they come."""
    total = 0
    while line := response.readline(MAX_LINE):
        total += len(line)
        if total > MAX_ANSWER:
            raise DraftsmithError(f"{url} sent more than {MAX_ANSWER >> 20} MB for one reply; lower --max-new-tokens")
        name, _, value = line.strip().partition(b":")
        if name != b"data":
            continue
        if value.strip() == b"[DONE]":
            return
        try:
            chunk = json.loads(value)
        except ValueError:
            _wrong_shape(url, "streamed something that is not JSON")
        if isinstance(chunk, dict) and chunk.get("error"):
            raise DraftsmithError(f"{url} failed in the middle of a reply: {_message(chunk)}")
        yield chunk


def _streamed(chunks: Sequence[tuple[float, Any]], began: float, url: str, *, chat: bool) -> Streamed:
    pieces: list[tuple[float, str]] = []
    end, used = began, None
    drafts: dict[str, Any] = {}
    try:
        for when, chunk in chunks:
            used = chunk.get("usage") or used
            drafts = chunk.get("timings") or drafts
            for choice in chunk.get("choices") or ():
                end = when  # an end-of-text token brings no text, but took its time
                text = _new_text(choice, chat=chat)
                if text:
                    pieces.append((when, text))
        num_tokens = len(pieces) if used is None else int(used["completion_tokens"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _wrong_shape(url, f"streamed objects without what a completion has ({type(error).__name__}: {error})")
    first = pieces[0][0] if pieces else end
    told = isinstance(drafts.get("draft_n"), int) and isinstance(drafts.get("draft_n_accepted"), int)
    return Streamed(
        text="".join(text for _, text in pieces),
        num_tokens=num_tokens,
        counted="chunks" if used is None else "endpoint",
        first_s=first - began,
        rest_s=end - first,
        drafted=drafts["draft_n"] if told else None,
        accepted=drafts["draft_n_accepted"] if told else None,
    )


def _new_text(choice: Mapping[str, Any], *, chat: bool) -> str:
    """What a chunk adds, thoughts included: they are written and waited for like the rest."""
    if not chat:
        return str(choice["text"] or "")
    delta = choice["delta"] or {}
    return str(delta.get("reasoning_content") or delta.get("reasoning") or "") + str(delta.get("content") or "")


def _wrong_shape(url: str, what: str) -> NoReturn:
    raise UsageError(f"{url} {what}; expected an OpenAI-compatible endpoint")


def _said(response: http.client.HTTPResponse) -> str:
    """What the server gave as a reason, on one line."""
    try:
        return _message(json.loads(response.read(10_000)))
    except (OSError, http.client.HTTPException, ValueError):
        return response.reason


def _message(value: Any) -> str:
    detail: Any = value.get("error", value) if isinstance(value, dict) else value
    message = detail.get("message", detail) if isinstance(detail, dict) else detail
    return " ".join(str(message).split())[:300]


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
