"""Load the models, open the socket, serve until told to stop, and let requests under way finish."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from draftsmith.engine import DraftChoice, Engine, EngineLimits, EngineOptions, LoadedModel, Progress
from draftsmith.engine.calibration import Calibration
from draftsmith.engine.loading import load_drafter, load_model
from draftsmith.engine.options import no_progress
from draftsmith.engine.thread import EngineThread
from draftsmith.errors import UsageError
from draftsmith.server.app import build_app
from draftsmith.server.guard import Guard
from draftsmith.server.metrics import Metrics
from draftsmith.server.options import ServerOptions
from draftsmith.server.protocol import patient_for
from draftsmith.server.service import ServedModel, Service
from draftsmith.speculate import CostModel
from draftsmith.text import choose_format

__all__ = ["Loaded", "listen", "load", "serve"]

_KEEP_ALIVE_S = 5
_BACKLOG = 1024
_SWITCH_S = 5e-4


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is to be served: the engine, not yet running, and how it is called."""

    engine: Engine
    model: ServedModel
    note: str | None = None


def load(
    target: str | Path | LoadedModel,
    draft: DraftChoice,
    options: EngineOptions,
    limits: EngineLimits,
    *,
    prompt_format: str | None = None,
    name: str | None = None,
    progress: Progress = no_progress,
) -> Loaded:
    """Load target and drafter and measure their steps. ``name``: what clients call the model.

    Raises UsageError, HubError, CheckpointError, TokenizerError, TemplateError, OutOfMemory.
    """
    loaded = target if isinstance(target, LoadedModel) else load_model(target, options, progress)
    drafter = load_drafter(draft, loaded, options, progress)
    shown = choose_format(loaded.tokenizer, prompt_format)
    length = None if options.num_draft_tokens == "auto" else options.num_draft_tokens
    costs: Callable[[], CostModel] | None = None
    measured: CostModel | None = None
    if drafter is not None and length is None:
        measured = Calibration(loaded, drafter, options.threads).steps.costs  # now, so that no request waits for it

        def costs(measured: CostModel = measured) -> CostModel:
            return measured

    engine = Engine(
        loaded.model,
        eos_ids=loaded.tokenizer.eos_ids,
        drafter=drafter.drafter if drafter is not None else None,
        draft_model=drafter.model if drafter is not None else None,
        costs=costs,
        num_draft_tokens=length,
        rule=options.rule,
        limits=limits,
    )
    model = ServedModel(
        name or _public_name(loaded.name),
        loaded.tokenizer,
        shown,
        engine.capacity,
        drafter.drafter.name if drafter is not None else None,
        measured,
    )
    return Loaded(engine, model, drafter.note if drafter is not None else None)


def listen(options: ServerOptions) -> socket.socket:
    """The socket that the server will answer on. Raises UsageError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"{options.host} port {options.port} cannot be used ({error.strerror or error}); choose another --port"
        ) from None
    # Connections inherit it. Without it a part of an answer waits for the client's word that it has the part before,
    # which the client delays by 40 ms; asyncio sets it only for sockets that name their protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(
    loaded: Loaded,
    options: ServerOptions,
    listener: socket.socket,
    *,
    ready: Callable[[str], object],
    access_log: bool = True,
    stop: threading.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or ``stop``; then let requests under way finish, for ``drain_s`` at most.

    ``ready`` is called with the address once the server answers. A second signal ends everything at once.
    """
    _set_up_logs(access_log)
    with EngineThread(loaded.engine) as engine:
        service = Service(loaded.model, engine, Metrics(loaded.model.name), ping_s=options.ping_s)
        guard = build_app(service, options)
        config = uvicorn.Config(
            guard,
            http=patient_for(options.header_s),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(options.drain_s)),
            h11_max_incomplete_event_size=options.max_header,
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        try:
            with _undisturbed():
                _Server(config, guard, lambda: ready(address), stop).run(sockets=[listener])
        finally:
            service.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Neither of the two threads keeps the other waiting for long.

    The engine's computes between its forwards; the event loop need not wait 5 ms for it at every turn. And no garbage
    is looked for in what was loaded before: that took 40 ms, in the middle of all replies.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)


class _Server(uvicorn.Server):
    """uvicorn's, which tells when it is ready, refuses new work while it drains, and ends with exit code 0."""

    def __init__(
        self, config: uvicorn.Config, guard: Guard, ready: Callable[[], object], stop: threading.Event | None
    ) -> None:
        super().__init__(config)
        self._guard = guard
        self._ready = ready
        self._stop = stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets=sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn: called ten times a second; True ends the service."""
        ends = await super().on_tick(counter) or (self._stop is not None and self._stop.is_set())
        self._guard.draining = self._guard.draining or ends
        return ends

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn, whose own raises the signal again in the end; ours has been dealt with by then."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # the signal module's signature
        """The first signal: no new work, finish what is under way. The second: end."""
        self.force_exit = self.should_exit
        self.should_exit = self._guard.draining = True


def _public_name(ref: str) -> str:
    """Clients need not know where the model's files lie."""
    return Path(ref).stem if Path(ref).exists() else ref


def _set_up_logs(access_log: bool) -> None:
    """Our own lines and uvicorn's complaints go to standard error; never what is in a request."""
    access = logging.getLogger("draftsmith.access")
    access.setLevel(logging.INFO if access_log else logging.CRITICAL)
    for name in ("draftsmith", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.propagate = False
        if name != "draftsmith":
            logger.setLevel(logging.ERROR)
        logger.handlers = [logging.StreamHandler(sys.stderr)]
        logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
