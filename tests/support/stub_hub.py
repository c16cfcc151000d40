"""A model hub on the loopback interface: as much of its protocol as ``huggingface_hub`` needs to fetch a model or the
files of a data set (here, both kinds share their names), and to have a card's metadata checked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml  # type: ignore[import-untyped]

_METADATA = {"language", "license", "library_name", "pipeline_tag", "tags", "datasets", "base_model"}
_LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "llama2", "other", "unknown"}  # some of the hub's list
_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual")


@dataclass
class StubHub:
    """``repositories``: name -> revision -> (commit, files). ``failing`` answers everything with that status."""

    repositories: dict[str, dict[str, tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    failing: int | None = None
    gated: set[str] = field(default_factory=set)
    downloads: list[str] = field(default_factory=list)
    stop_after: int | None = None  # bytes of a body after which the connection is dropped
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], revision: str = "main") -> str:
        commit = sha256(repr((name, revision, sorted(files.items()))).encode()).hexdigest()[:40]
        revisions = self.repositories.setdefault(name, {})
        revisions[revision] = revisions[commit] = (commit, files)
        return commit


def wrong_metadata(card: str) -> list[str]:
    """What the hub's documentation of model cards forbids in the metadata at a card's top."""
    found = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    values = yaml.safe_load(found.group(1)) if found else None
    if not isinstance(values, dict):
        return ["no metadata"]
    wrong = [f"{key} is not allowed" for key in values.keys() - _METADATA]
    for key in ("language", "tags", "datasets", "base_model"):
        listed = values.get(key, [])
        listed = [listed] if isinstance(listed, str) else listed
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            wrong.append(f"{key} must be a text or a list of texts")
        elif key in ("datasets", "base_model"):
            wrong += [f"{key}: {one} is no name on the hub" for one in listed if not _NAME.fullmatch(one)]
        elif key == "language":
            wrong += [f"language: {one} is no code of ISO 639" for one in listed if not _LANGUAGE.fullmatch(one)]
    if values.get("license") not in _LICENSES:
        wrong.append(f"license: {values.get('license')!r} is not in the list")
    if values.get("pipeline_tag") != "text-generation" or not isinstance(values.get("library_name"), str):
        wrong.append("pipeline_tag or library_name")
    return wrong


def _handler(hub: StubHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the base class names it so
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/api/validate-yaml" or asked.get("repoType") != "model":
                self.reply(404, b"")
                return
            wrong = "; ".join(wrong_metadata(asked["content"]))
            self.reply(400 if wrong else 200, wrong.encode())

        def answer(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if hub.failing:
                self.reply(hub.failing, b"")
            elif parts[:1] == ["datasets"]:
                self.send("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
            elif parts[:2] in (["api", "models"], ["api", "datasets"]):
                self.describe("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
            elif len(parts) > 4 and parts[2] == "resolve":
                self.send("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self.reply(404, b"")

        def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
            if name not in hub.repositories:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif name in hub.gated:
                self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
            elif revision not in hub.repositories[name]:
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            else:
                return hub.repositories[name][revision]
            return None

        def describe(self, name: str, revision: str) -> None:
            if found := self.find(name, revision):
                commit, files = found
                siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
                body = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
                self.reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def send(self, name: str, revision: str, file: str) -> None:
            if found := self.find(name, revision):
                commit, files = found
                if file not in files:
                    self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                    return
                if self.command == "GET":
                    hub.downloads.append(file)
                etag = sha256(files[file]).hexdigest()
                self.reply(200, files[file], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if hub.stop_after is None else body[: hub.stop_after])
                if hub.stop_after is not None and len(body) > hub.stop_after:
                    self.close_connection = True

    return Handler


@contextmanager
def stub_hub() -> Iterator[StubHub]:
    """A running hub; ``url`` is its endpoint."""
    hub = StubHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
