"""A target behind an OpenAI-compatible endpoint (vLLM, ``draftsmith serve``), in the place of our engine.

Prompts go to ``/completions`` as token ids, many at a time. With ``logprobs`` the reply must name its tokens by id
(``return_tokens_as_token_ids``, as vLLM has it): texts of tokens are not unique. Without, the reply's text is encoded
again, which any endpoint can serve. The key is read from DRAFTSMITH_ENDPOINT_KEY or OPENAI_API_KEY.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.text import PromptFormat, Tokenizer
from draftsmith.types import Completion, SamplingParams, Timing, TokenLogprobs

__all__ = ["EndpointWriter"]

KEYS = ("DRAFTSMITH_ENDPOINT_KEY", "OPENAI_API_KEY")
TRIES = 6  # a server that restarts is waited for: 1, 2, 4, 8 and 16 seconds
TIMEOUT_S = 600.0
MAX_REPLY_BYTES = 256 << 20
_BY_ID = re.compile(r"token_id:(\d{1,9})")
_NO_TIME = Timing(load_s=0.0, prefill_s=0.0, decode_s=0.0, num_decoded=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointWriter:
    """``address`` ends before ``/completions``, ``name`` is the model's there. ``tokenizer``, ``prompt_format`` and
    ``max_context`` (tokens) are the target's, from its files here. ``requests``: how many at a time. ``first_wait_s``:
    before trying again."""

    address: str
    name: str
    tokenizer: Tokenizer
    prompt_format: PromptFormat
    max_context: int
    requests: int = 16
    first_wait_s: float = 1.0

    def __post_init__(self) -> None:
        if not self.address.startswith(("http://", "https://")):
            raise UsageError(f"endpoint is {self.address!r}; expected an address such as http://host:8000/v1")

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams]) -> list[Completion]:
        """One reply to each prompt. Raises UsageError for what the endpoint refuses or cannot do, DraftsmithError when
        it stays out of reach."""
        with ThreadPoolExecutor(self.requests) as pool:
            return list(pool.map(self._one, prompts, sampling))

    def _one(self, prompt: Sequence[int], params: SamplingParams) -> Completion:
        answer = self._ask(_body(self.name, prompt, params, self.max_context - len(prompt)))
        try:
            choice = answer["choices"][0]
            text, finish = str(choice["text"]), choice["finish_reason"]
            if params.logprobs is None:
                text, ids, finish = self._encoded(text, finish, params.stop)
                logprobs = None
            else:
                logprobs = _logprobs(choice["logprobs"] or {}, params.logprobs)
                ids = tuple(entry.token_id for entry in logprobs)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self.address} gave no completion with tokens named by id ({error}); serve the target with vLLM or "
                "draftsmith serve, or set top_logprobs = 0"
            ) from None
        wrong = next((token_id for token_id in ids if token_id >= self.tokenizer.vocab_size), None)
        if wrong is not None:
            raise UsageError(
                f"{self.address} wrote the token {wrong}, but the vocabulary of model has {self.tokenizer.vocab_size}; "
                "let model name the files of the model that the endpoint serves"
            )
        return Completion(
            text=text,
            token_ids=ids,
            from_draft=(False,) * len(ids),
            finish_reason="stop" if finish == "stop" else "length",
            num_prompt_tokens=len(prompt),
            seed=params.seed,
            timing=_NO_TIME,
            logprobs=logprobs,
        )

    def _encoded(self, text: str, finish: str, stops: Sequence[str]) -> tuple[str, tuple[int, ...], str]:
        """A text up to the first of ``stops``, its ids with those of that stop, or else with the token that ends it if
        it was ended; and how it was."""
        begin, stop = min(((text.find(stop), stop) for stop in stops if stop in text), default=(len(text), ""))
        ids = self.tokenizer.encode(text[:begin] + stop, add_bos=False)
        ended = finish == "stop" and not stop
        return text[:begin], (*ids, *(self.tokenizer.eos_ids[:1] if ended else ())), "stop" if stop else finish

    def _ask(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "draftsmith"}
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        url = self.address.rstrip("/") + "/completions"
        data, reason = json.dumps(body).encode(), ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self.first_wait_s * 2 ** (attempt - 1))
            request = urllib.request.Request(url, data, headers)  # noqa: S310 - the scheme is checked above
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310
                    return json.loads(reply.read(MAX_REPLY_BYTES))
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {_said(error)}"
                if error.code < 500 and error.code not in (408, 429):
                    raise UsageError(f"{url} refused the request: {reason}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise DraftsmithError(
            f"{url} did not answer in {TRIES} attempts ({reason}); what was written is kept: run the same command again"
        )


def _body(model: str, prompt: Sequence[int], params: SamplingParams, room: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": min(params.max_new_tokens, room),
        "temperature": 0.0 if params.greedy else params.temperature,
        "top_p": 1.0 if params.greedy else params.top_p,
        "seed": params.seed,
        "stop": list(params.stop) if params.logprobs is not None else None,  # or nothing tells an end from a stop
    }
    if params.top_k and not params.greedy:
        body["top_k"] = params.top_k  # not in OpenAI's own list; asked for only where it is set
    if params.logprobs is not None:
        body |= {"logprobs": params.logprobs, "return_tokens_as_token_ids": True}
    return {name: value for name, value in body.items() if value not in (None, [])}


def _logprobs(listed: Mapping[str, Any], count: int) -> tuple[TokenLogprobs, ...]:
    """Best first, ``count`` at each place: servers add the token that was drawn, where it is none of them."""
    found = []
    for token, logprob, top in zip(listed["tokens"], listed["token_logprobs"], listed["top_logprobs"], strict=True):
        entries = sorted(((_id(name), float(value)) for name, value in top.items()), key=lambda e: (-e[1], e[0]))
        if len(entries) < count:
            raise ValueError(f"{len(entries)} log-probabilities at a place, {count} were asked for")
        found.append(TokenLogprobs(_id(token), float(logprob), tuple(entries[:count])))
    return tuple(found)


def _id(token: str) -> int:
    shape = _BY_ID.fullmatch(token)
    if shape is None:
        raise ValueError(f"a token is called {token!r:.40}")
    return int(shape[1])


def _said(error: urllib.error.HTTPError) -> str:
    """What the server gave as a reason."""
    try:
        text = error.read(10_000).decode("utf-8", "replace")
        value = json.loads(text)
    except (OSError, http.client.HTTPException, ValueError):
        return str(error.reason)
    detail: Any = value.get("error", value) if isinstance(value, dict) else value
    message = detail.get("message", detail) if isinstance(detail, dict) else detail
    return " ".join(str(message).split())[:300]
