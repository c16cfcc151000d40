"""``draftsmith serve``: the HTTP server; what it does is in ``draftsmith.server``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftsmith.cli.config_file import read_config
from draftsmith.cli.options import ModelOptions
from draftsmith.cli.progress import ProgressBars

if TYPE_CHECKING:
    from draftsmith.server.options import ServerOptions

__all__ = ["serve"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """Where the server listens and whom it lets in."""

    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(metavar="N", help="The port; 0 takes any free one.")] = 8000
    api_key_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="API keys, one a line; DRAFTSMITH_API_KEY is one more. None: no key needed."),
    ] = None
    admin_key_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Keys that alone open /metrics; DRAFTSMITH_ADMIN_KEY is one more."),
    ] = None
    open_network: Annotated[
        bool,
        typer.Option(
            "--open-network", help="Listen on an address that others can reach, though models may be unaligned."
        ),
    ] = False
    allow_host: Annotated[
        list[str], typer.Option(metavar="NAME", help="A name that the server may be called by.", show_default=False)
    ] = dataclasses.field(default_factory=list)
    allow_origin: Annotated[
        list[str],
        typer.Option(metavar="URL", help="Another origin whose pages may call the server.", show_default=False),
    ] = dataclasses.field(default_factory=list)
    stream_interval: Annotated[
        int, typer.Option(metavar="MS", help="Streams send equal blocks at this interval, hiding their pace; 0 is off.")
    ] = 0
    moderate: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Judges prompts and replies by its exit code: 0 lets pass, else refused."),
    ] = None


def serve(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Options from a TOML file; the command line wins.", callback=read_config, is_eager=True
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What clients call the model.")] = None,
    prompt_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="chat|alpaca|FILE.jinja", help="The prompt format; the model's own if not given."
        ),
    ] = None,
    max_running: Annotated[int, typer.Option(metavar="N", help="Replies written at once.")] = 16,
    max_waiting: Annotated[int, typer.Option(metavar="N", help="Requests in the queue; more get a 503.")] = 64,
    share_prompts: Annotated[
        bool,
        typer.Option(
            "--share-prompts/--no-share-prompts",
            help="Read once what several prompts begin with; how fast it goes tells a user what others have asked.",
        ),
    ] = True,
    drain_s: Annotated[float, typer.Option(metavar="S", help="Seconds for open requests when told to stop.")] = 30.0,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="A line a request, without any of its text.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
    network: NetworkOptions,
    model: ModelOptions,
) -> None:
    """Serve OpenAI's API and a chat page on this machine.

    The first line of the output says where. SIGTERM and Ctrl-C let open requests finish; a second one does not wait.

    Options can also be set in the environment, --max-running as DRAFTSMITH_SERVE_MAX_RUNNING. The command line wins,
    then the environment, then --config.
    """
    del config  # what it says is in the other options
    options = _server_options(network, drain_s)
    from draftsmith.engine import EngineLimits, EngineOptions
    from draftsmith.server.run import listen, load
    from draftsmith.server.run import serve as run

    with listen(options) as listener:  # before the model is loaded: a port that is taken is known at once
        arguments = model.for_llm()
        target, draft = arguments.pop("target"), arguments.pop("draft")
        limits = EngineLimits(max_running=max_running, max_waiting=max_waiting, share_prompts=share_prompts)
        chosen = EngineOptions(**arguments)
        with ProgressBars(quiet=quiet) as progress:
            loaded = load(target, draft, chosen, limits, prompt_format=prompt_format, name=name, progress=progress)

        def tell(address: str) -> None:
            drafter = loaded.model.drafter or "none"
            budget = loaded.engine.stats.kv_budget
            memory = "" if budget is None else f", up to {budget / 1e9:.1f} GB for context"
            sys.stdout.write(f"serving {loaded.model.name} (draft: {drafter}) at {address}{memory}\n")
            if loaded.note is not None:
                sys.stdout.write(f"{loaded.note}\n")
            sys.stdout.flush()

        run(loaded, options, listener, ready=tell, access_log=access_log)


def _server_options(network: NetworkOptions, drain_s: float) -> ServerOptions:
    """Who may call, and where; keys come from files and the environment."""
    from draftsmith.server.options import ADMIN_KEY_VARIABLE, ServerOptions, read_keys

    admin_file = Path(network.admin_key_file) if network.admin_key_file is not None else None
    return ServerOptions(
        host=network.host,
        port=network.port,
        api_keys=read_keys(Path(network.api_key_file) if network.api_key_file is not None else None),
        admin_keys=read_keys(admin_file, variable=ADMIN_KEY_VARIABLE),
        open_network=network.open_network,
        allow_hosts=tuple(network.allow_host),
        allow_origins=tuple(network.allow_origin),
        drain_s=drain_s,
        pace_s=network.stream_interval / 1000,
        moderate=network.moderate,
    )
