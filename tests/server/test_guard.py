"""Who may call, and what a browser is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.errors import UsageError
from draftsmith.server.options import ServerOptions, read_keys
from draftsmith.server.run import listen
from tests.support.serving import Running, running
from tests.support.shared_fakes import SharedFakeModel

KEYS = ("a-first-key-of-some-length", "another-key-of-some-length")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(SharedFakeModel(), allow_hosts=("box.test",), allow_origins=("https://app.test",)) as found:
        yield found


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with running(SharedFakeModel(), api_keys=KEYS) as found:
        yield found


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("localhost.", 200),
        ("127.0.0.1:1", 200),
        ("127.8.8.8", 200),
        ("[::1]:8000", 200),
        ("box.test", 200),
        ("box.test:80", 200),
        ("", 403),
        ("evil.test", 403),
        ("localhost.evil.test", 403),
        ("localhost@evil.test", 403),
        ("evil.test#localhost", 403),
        ("localhost:x", 403),
        ("box.test.evil.test", 403),
        ("0.0.0.0", 403),  # noqa: S104  # what is refused
        ("192.168.1.4", 403),
        ("[::]", 403),
        ("127.0.0.1.evil.test", 403),
    ],
)
def test_only_names_of_this_machine(server: Running, host: str, status: int) -> None:
    assert server.call("GET", "/health", host=host).status == status


@pytest.mark.parametrize(
    ("origin", "allowed", "readable"),
    [
        ("http://localhost:8000", True, False),
        ("https://app.test", True, True),
        ("http://evil.test", False, False),
        ("http://localhost:8001", False, False),
        ("http://localhost.evil.test", False, False),
        ("https://app.test.evil.test", False, False),
        ("null", False, False),
        ("", False, False),
    ],
)
def test_only_pages_of_our_own(server: Running, origin: str, allowed: bool, readable: bool) -> None:
    reply = server.call("GET", "/health", host="localhost:8000", origin=origin)
    assert reply.status == (200 if allowed else 403)
    assert reply.headers.get("access-control-allow-origin") == (origin if readable else None)
    assert "access-control-allow-credentials" not in reply.headers


def test_a_simple_form_cannot_post(server: Running) -> None:
    reply = server.call("POST", "/v1/completions", b'{"prompt": "a"}', content_type="text/plain")
    assert reply.status == 415


def test_preflight_of_an_allowed_origin(server: Running) -> None:
    reply = server.call("OPTIONS", "/v1/chat/completions", host="localhost", origin="https://app.test")
    assert reply.status == 200
    assert "authorization" in reply.headers["access-control-allow-headers"]


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/models/tiny", "/nowhere", "//", "/health/"])
def test_everything_needs_the_key(locked: Running, path: str) -> None:
    reply = locked.call("GET", path)
    assert reply.status == 401
    assert reply.json["error"]["type"] == "authentication_error"
    for value in (KEYS[0], f"Bearer {KEYS[0]}x", f"Bearer {KEYS[0][:-1]}", "Bearer ", f"Basic {KEYS[0]}", "Bearer é"):
        assert locked.call("GET", path, authorization=value).status == 401
    for key in KEYS:
        assert locked.call("GET", path, authorization=f"Bearer {key}").status in (200, 404, 405)


def test_what_needs_no_key(locked: Running) -> None:
    for path in ("/", "/health", "/ready"):
        assert locked.call("GET", path).status == 200
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        assert locked.call("POST", path, {}).status == 401


def test_headers_that_browsers_obey(server: Running) -> None:
    for path in ("/", "/v1/models", "/nowhere"):
        headers = server.call("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_wrong_paths_and_methods_in_the_same_form(server: Running) -> None:
    assert server.call("GET", "/static/../options.py").json["error"]["type"] == "not_found_error"
    reply = server.call("GET", "/v1/completions")
    assert reply.status == 405
    assert reply.json["error"]["message"] == "the path does not take this method"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(server: Running, chunked: bool) -> None:
    data = b'{"prompt": "' + b"a" * (2 * 1024 * 1024) + b'"}'
    headers = {"transfer_encoding": "chunked"} if chunked else {}
    if chunked:
        parts = [data[i : i + 60_000] for i in range(0, len(data), 60_000)]
        data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    try:
        reply = server.call("POST", "/v1/completions", data, **headers)
    except (BrokenPipeError, ConnectionResetError):
        return  # cut off before all of it was sent
    assert reply.status == 413


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.test"])  # noqa: S104  # what is refused
def test_other_machines_need_a_key_and_a_word(host: str) -> None:
    with pytest.raises(UsageError, match="API key"):
        ServerOptions(host=host, open_network=True)
    with pytest.raises(UsageError, match="--open-network"):
        ServerOptions(host=host, api_keys=KEYS)
    ServerOptions(host=host, api_keys=KEYS, open_network=True)


def test_options_that_cannot_be() -> None:
    for wrong in ({"port": 65536}, {"drain_s": -1.0}, {"allow_origins": ("*",)}, {"allow_origins": ("app.test",)}):
        with pytest.raises(UsageError):
            ServerOptions(**wrong)


def test_keys_from_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# mine\n\n{KEYS[0]}\n")
    assert read_keys(file, {"DRAFTSMITH_API_KEY": KEYS[1]}) == KEYS
    assert read_keys(None, {}) == ()
    with pytest.raises(UsageError, match="too short"):
        read_keys(None, {"DRAFTSMITH_API_KEY": "short"})
    file.write_text("# none\n")
    with pytest.raises(UsageError, match="has no key"):
        read_keys(file, {})
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(tmp_path / "missing", {})


def test_a_taken_port_is_told_in_one_sentence(server: Running) -> None:
    with pytest.raises(UsageError, match=f"port {server.port} cannot be used"):
        listen(ServerOptions(port=server.port))
