"""What stands before every route: who may call (Host, Origin, key), headers that browsers obey, and the access log.

Host: a page of a stranger can make a browser call us under the stranger's own name, once that name points to 127.0.0.1
(DNS rebinding); so only names of this machine are taken. Origin: browsers send it with what pages ask for.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from draftsmith.server.options import ServerOptions, is_loopback
from draftsmith.server.problems import ApiError

__all__ = ["OPEN_PATHS", "Guard", "send_json"]

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
ADMIN_PATHS = frozenset({"/metrics"})
STATIC = "/static/"
MAX_HEADERS = 100
_SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


async def send_json(send: Send, status: int, value: object, headers: dict[str, str] | None = None) -> None:
    """One JSON answer."""
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    raw = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    start = [(name.encode(), text.encode("latin-1", "replace")) for name, text in raw.items()]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


class Guard:
    """The application inside is called only for requests that may come in."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self._app = app
        self._options = options
        self._admins = [hashlib.sha256(key.encode()).digest() for key in options.admin_keys]
        self._users = [hashlib.sha256(key.encode()).digest() for key in options.api_keys]
        self._names = {"localhost", options.host.lower(), *(host.lower() for host in options.allow_hosts)}
        self._log = logging.getLogger("draftsmith.access")
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Anything but HTTP is refused, except that the server begins and ends (lifespan)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers, began, status = Headers(scope=scope), time.perf_counter(), 0
        origin = headers.get("origin")

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message), origin)
            await send(message)

        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS":
                await send_json(answer, 200, {})
            else:
                await self._app(scope, receive, answer)
        except ApiError as error:
            await send_json(answer, error.status, error.body(), error.headers)
        finally:
            self._write_log(scope, status, time.perf_counter() - began)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises ApiError for who may not come in."""
        sizes = [len(name) + len(value) for name, value in headers.raw]
        if len(sizes) > MAX_HEADERS or sum(sizes) > self._options.max_header:
            raise ApiError(431, "the request's header is too large; send fewer and shorter fields", code="too_large")
        if not self._known_host(headers.get("host", "")):
            raise ApiError(
                403, "this Host is not served; call the server by its address, or allow the name", code="host"
            )
        if not self._known_origin(headers):
            raise ApiError(403, "pages of this origin may not call the server", code="origin")
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(STATIC) or scope["method"] == "OPTIONS"
        asked = self._admins if self._admins and path in ADMIN_PATHS else self._users + self._admins * bool(self._users)
        if asked and not is_open and not _known_key(headers.get("authorization", ""), asked):
            raise ApiError(401, "an API key is needed; send it as Authorization: Bearer KEY", code="invalid_api_key")
        if self.draining and scope["method"] == "POST":
            raise ApiError(503, "the server is shutting down; try again when it is back", code="overloaded", retry=True)

    def _known_host(self, value: str) -> bool:
        name = _host_name(value)
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # An address cannot be rebound. Bound to this machine alone, the server has loopback addresses only.
        return address.is_loopback or not is_loopback(self._options.host)

    def _known_origin(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or origin in self._options.allow_origins:
            return True
        return origin.partition("://")[2].lower() == headers.get("host", "").lower() != ""

    def _add_headers(self, headers: MutableHeaders, origin: str | None) -> None:
        for name, value in _SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        if origin is not None and origin in self._options.allow_origins:
            headers["access-control-allow-origin"] = origin
            headers["access-control-allow-headers"] = "authorization, content-type"
            headers["access-control-allow-methods"] = "GET, POST"
            headers["vary"] = "Origin"

    def _write_log(self, scope: Scope, status: int, seconds: float) -> None:
        """Address, method, path, status and time: never a query, a body or a text."""
        client = scope["client"][0] if scope.get("client") else "-"
        path = ascii(scope["path"][:200])[1:-1]
        self._log.info("%s %s %s %s %.3fs", client, scope["method"], path, status or "cut", seconds)


def _known_key(authorization: str, digests: Sequence[bytes]) -> bool:
    """All keys are compared, each in constant time, so that time tells nothing."""
    scheme, _, key = authorization.partition(" ")
    digest = hashlib.sha256(key.strip().encode("utf-8", "replace")).digest()
    matches = [hmac.compare_digest(digest, known) for known in digests]
    return scheme.lower() == "bearer" and any(matches)


def _host_name(value: str) -> str:
    """A Host header without its port; empty when it is none."""
    try:
        parts = urlsplit(f"//{value}")
        _ = parts.port  # raises when it is no number
    except ValueError:
        return ""
    if not value or parts.path or parts.query or parts.fragment or "@" in value:
        return ""
    return (parts.hostname or "").lower().removesuffix(".")
