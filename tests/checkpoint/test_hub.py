"""Models from a hub: the official client against a stub on the loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftsmith.checkpoint import open_checkpoint, resolve
from draftsmith.checkpoint.store import list_models, pull, remove, show
from draftsmith.errors import CheckpointError, DiskFull, HubError, UsageError
from tests.support.stub_hub import StubHub, stub_hub
from tests.support.tiny_models import write_folder, write_llama_gguf


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubHub]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with stub_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def folder_files(tmp_path: Path) -> dict[str, bytes]:
    folder = write_folder(tmp_path / "source")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "pytorch_model.bin": b"pickle", "README.md": b"", "onnx/model.safetensors": b"x"}


@pytest.fixture
def gguf_file(tmp_path: Path) -> bytes:
    return write_llama_gguf(tmp_path / "source.gguf").read_bytes()


def test_fetches_a_folder_once(hub: StubHub, folder_files: dict[str, bytes]) -> None:
    commit = hub.add("org/model", folder_files)
    seen: list[tuple[int, int]] = []
    resolved = resolve("org/model", progress=lambda done, total: seen.append((done, total)))
    assert (resolved.source, resolved.revision) == ("hub", commit)
    assert sorted(hub.downloads) == ["config.json", "model.safetensors"]  # no pickle, nothing in folders
    assert len(open_checkpoint(resolved.path).tensors) == 21
    size = len(folder_files["config.json"]) + len(folder_files["model.safetensors"])
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert resolve("org/model") == resolved
    assert len(hub.downloads) == 2


def test_revisions_are_pinned(hub: StubHub, gguf_file: bytes) -> None:
    first = hub.add("org/model", {"m.gguf": gguf_file})
    second = hub.add("org/model", {"m.gguf": gguf_file + b"\0" * 32}, revision="v2")
    assert resolve("org/model").revision == first
    assert resolve("org/model@v2").revision == second
    pinned = resolve(f"org/model@{first}")
    assert pinned.path.read_bytes() == gguf_file
    hub.failing = 500
    assert resolve(f"org/model@{first}").path == pinned.path  # fixed and here: the hub need not be asked


def test_without_the_hub_the_cache_serves(
    hub: StubHub, folder_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", folder_files)
    resolved = resolve("org/model")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert resolve("org/model") == resolved
    with pytest.raises(HubError, match=r"could not be reached for org/other.*check the network") as caught:
        resolve("org/other")
    assert "\n" not in str(caught.value)
    (resolved.path / "config.json").unlink()
    with pytest.raises(HubError, match="could not be reached"):  # not all there any more
        resolve("org/model")


def test_shards(hub: StubHub, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    names = {"model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2"}
    index = {"model.safetensors.index.json": b"{}", "config.json": (source / "config.json").read_bytes()}
    hub.add("org/model", {**names, **index, "tokenizer.json": b"{}"})
    folder = resolve("org/model").path
    assert {path.name for path in folder.iterdir()} == {*names, *index, "tokenizer.json"}


def test_gguf_files_of_a_repository(hub: StubHub, gguf_file: bytes) -> None:
    hub.add("org/one", {"README.md": b"", "only.gguf": gguf_file})
    hub.add("org/two", {"a.gguf": gguf_file, "sub/b.gguf": gguf_file})
    assert resolve("org/one").path.name == "only.gguf"
    assert resolve("org/two:sub/b.gguf").path.read_bytes() == gguf_file
    with pytest.raises(UsageError, match=r"org/two holds 2 GGUF files; name one, as in org/two:FILE, from a.gguf, sub"):
        resolve("org/two")
    with pytest.raises(HubError, match=r"org/two has no file c.gguf at revision main"):
        resolve("org/two:c.gguf")


def test_refusals(hub: StubHub, gguf_file: bytes) -> None:
    hub.add("org/model", {"m.gguf": gguf_file})
    hub.add("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b""})
    hub.add("org/gated", {"m.gguf": gguf_file})
    hub.gated.add("org/gated")
    for reference, message in (
        ("org/nothing", "the hub has no org/nothing, or it is private"),
        ("org/model@v9", "org/model has no revision 'v9'"),
        ("org/gated", "org/gated is gated; accept its terms"),
    ):
        with pytest.raises(HubError, match=message) as caught:
            resolve(reference)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="pickles are never read"):
        resolve("org/pickled")
    hub.failing = 503
    with pytest.raises(HubError, match="could not be reached for org/model: status 503"):
        resolve("org/model")
    hub.failing = 418
    with pytest.raises(HubError, match="the hub refused org/model with status 418"):
        resolve("org/model")


def test_full_disk_is_seen_before_fetching(
    hub: StubHub, gguf_file: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add("org/model", {"m.gguf": gguf_file})
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("draftsmith.checkpoint.atomic.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match=r"org/model needs 0 MB in .*hub, but 0 MB are free"):
        resolve("org/model")
    assert not (tmp_path / "hub").exists()
    assert not hub.downloads


def test_list_show_and_remove(hub: StubHub, folder_files: dict[str, bytes], gguf_file: bytes) -> None:
    hub.add("org/folder", folder_files)
    hub.add("org/files", {"a.gguf": gguf_file})
    with pytest.raises(HubError, match="org/folder is not in the cache; fetch it with: draftsmith models pull"):
        show("org/folder")
    pull("org/folder")
    pull("org/files")
    listed = {model.reference: model for model in list_models()}
    assert listed.keys() == {"smollm2-135m-instruct", "org/folder", "org/files:a.gguf"}
    assert listed["smollm2-135m-instruct"].path is None
    assert listed["org/files:a.gguf"].num_bytes == len(gguf_file)
    hub.failing = 500
    details = show("org/folder")
    assert details.num_parameters == sum(details.block_types.values()) == 78_144
    assert details.block_types == {"F32": 78_144}
    assert len(details.sha256) == 64
    assert remove("org/folder") > len(folder_files["model.safetensors"])
    assert [model.reference for model in list_models()] == ["smollm2-135m-instruct", "org/files:a.gguf"]
    with pytest.raises(UsageError, match="org/folder is not in the cache"):
        remove("org/folder")


def test_the_environment_of_a_process_is_honoured(hub: StubHub, gguf_file: bytes) -> None:
    """The same in a fresh process, where the client reads HF_ENDPOINT at import."""
    hub.add("org/model", {"m.gguf": gguf_file})
    code = "from draftsmith.checkpoint.reference import resolve; print(resolve('org/model').path)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert Path(result.stdout.strip()).read_bytes() == gguf_file
    assert result.stderr == ""  # no progress bar of the client's own
