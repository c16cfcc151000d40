"""A real server on loopback in a thread of this process, with a small model behind it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from draftsmith.engine import EngineLimits, EngineOptions, LoadedModel
from draftsmith.model.protocol import Model
from draftsmith.server.options import ServerOptions
from draftsmith.server.run import Loaded, listen, load, serve
from draftsmith.speculate import PromptLookupDrafter
from tests.support.fakes import CHAT_TEMPLATE, byte_tokenizer

PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs."""

    address: str
    port: int
    loaded: Loaded
    stop: threading.Event
    thread: threading.Thread

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request. ``body``: bytes as they are, or a value that is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent: dict[str, str] = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            sent = {"content-type": "application/json", **sent}
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


@contextmanager
def running(
    model: Model,
    *,
    limits: EngineLimits | None = None,
    draft: bool = True,
    template: str = CHAT_TEMPLATE,
    **options: Any,
) -> Iterator[Running]:
    """Serve ``model`` with the byte tokenizer and prompt lookup of 4 tokens."""
    chosen = ServerOptions(port=0, **options)
    loaded = load(
        LoadedModel("tiny", model, byte_tokenizer(chat_template=template)),
        PromptLookupDrafter() if draft else None,
        EngineOptions(num_draft_tokens=4) if draft else EngineOptions(),
        limits or EngineLimits(),
    )
    with serving(loaded, chosen) as found:
        yield found


@contextmanager
def serving(loaded: Loaded, chosen: ServerOptions) -> Iterator[Running]:
    """Serve what is loaded."""
    listener, is_ready, addresses, stop = listen(chosen), threading.Event(), [], threading.Event()

    def ready(address: str) -> None:
        addresses.append(address)
        is_ready.set()

    def run() -> None:
        serve(loaded, chosen, listener, ready=ready, access_log=False, stop=stop)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_ready.wait(PATIENCE)
    try:
        yield Running(addresses[0], listener.getsockname()[1], loaded, stop, thread)
    finally:
        stop.set()
        thread.join(PATIENCE)
        listener.close()
        assert not thread.is_alive()
