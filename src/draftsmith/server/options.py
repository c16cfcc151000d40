"""How the server listens, whom it lets in, and how much it takes on: checked before anything is loaded."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from draftsmith.errors import UsageError

__all__ = ["ADMIN_KEY_VARIABLE", "KEY_VARIABLE", "ServerOptions", "is_loopback", "read_keys"]

KEY_VARIABLE = "DRAFTSMITH_API_KEY"
ADMIN_KEY_VARIABLE = "DRAFTSMITH_ADMIN_KEY"
MIN_KEY_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Raises UsageError on construction for values that are out of range or would let strangers in.

    ``api_keys``: any of them opens everything; the page, /health and /ready need none, and without keys nothing does.
    ``admin_keys``: if there are any, /metrics needs one of them; they open the rest, too.
    ``open_network``: the caller knows that the model has no safety alignment and wants it reachable all the same.
    ``allow_hosts``: names by which the server may be called besides its address. ``allow_origins``: pages of other
    origins that may call it (CORS). ``header_s`` and ``body_s``: time to send a request's header and body; ``send_s``:
    to take a part of the answer. ``ping_s``: a stream is never silent for longer. ``drain_s``: time for requests under
    way when the server is told to stop. ``pace_s``: streams send blocks of one size at this interval, 0 for as it comes
    (see ``paced``). ``moderate``: a command that judges prompts and replies (see ``moderation``).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    open_network: bool = False
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    max_body: int = 2 * 1024 * 1024
    max_header: int = 64 * 1024
    header_s: float = 9.0
    body_s: float = 30.0
    send_s: float = 60.0
    ping_s: float = 15.0
    drain_s: float = 30.0
    pace_s: float = 0.0
    moderate: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port is {self.port}; it must be from 0 (any free one) to 65535")
        if self.drain_s < 0:
            raise UsageError(f"the drain time is {self.drain_s}; it must be 0 seconds or more")
        if not (self.pace_s == 0 or 0.01 <= self.pace_s <= 10):
            raise UsageError(f"the stream's interval is {self.pace_s} s; it must be 0 (off) or from 0.01 to 10 seconds")
        if "*" in (*self.allow_hosts, *self.allow_origins):
            raise UsageError("* would let every web page in; name the hosts and origins one by one")
        for origin in self.allow_origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise UsageError(f"the origin {origin!r} is none; write it like https://example.org:8443")
        if is_loopback(self.host):
            return
        if not self.api_keys:
            raise UsageError(
                f"{self.host} can be reached from other machines; give an API key with --api-key-file or "
                f"{KEY_VARIABLE}, or stay at 127.0.0.1"
            )
        if not self.open_network:
            raise UsageError(
                f"{self.host} can be reached from other machines, and models may have no safety alignment; "
                "give --open-network if that is meant, or stay at 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_keys(
    path: Path | None, environment: Mapping[str, str] = os.environ, variable: str = KEY_VARIABLE
) -> tuple[str, ...]:
    """The keys of a file (one a line, # begins a comment) and of the environment. Raises UsageError; shows no key."""
    lines: list[str] = []
    if path is not None:
        try:
            lines += path.expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UsageError(f"the key file {path} cannot be read ({reason})") from None
        if not any(line.strip() and not line.strip().startswith("#") for line in lines):
            raise UsageError(f"the key file {path} has no key; write one a line")
    lines.append(environment.get(variable, ""))
    keys = tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))
    if any(len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() for key in keys):
        raise UsageError(f"an API key is too short or odd; use {MIN_KEY_LENGTH} or more letters and digits")
    return keys
