"""The cache of packed weights: made once, mapped after that, made again when it is damaged, never in the way."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftsmith.checkpoint import Checkpoint, open_checkpoint
from draftsmith.errors import DiskFull
from draftsmith.model._native import ThreadTeam
from draftsmith.model.native import NativeModel
from draftsmith.model.packed import MAGIC, load_packed
from draftsmith.model.protocol import TokenRun
from draftsmith.quant import BlockType
from tests.support.native_models import Recipe, make_checkpoint
from tests.support.tiny_models import write_folder

RECIPE = Recipe(types={"": BlockType.Q4_1}, gguf=True)
Progress = list[tuple[int, int]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFTSMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return make_checkpoint(tmp_path, RECIPE)


def load(checkpoint: Checkpoint, **options: Any) -> tuple[bytes, Progress]:
    """The logits of a short text, and the progress of packing: none if the weights were there already."""
    progress: Progress = []
    model = NativeModel.load(checkpoint, threads=1, progress=lambda *step: progress.append(step), **options)
    [logits] = model.forward([TokenRun(model.new_cache(), [1, 2, 3], 3)])
    return logits.tobytes(), progress


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def anonymous_bytes() -> int:
    """Memory of this process that no other can share."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what memory is whose")
@pytest.mark.usefixtures("cache")
def test_weights_of_a_large_model_are_shared_not_copied(tmp_path: Path) -> None:
    big = Recipe(types={"": BlockType.F32}, config={"vocab_size": 100_000})  # 51 MB
    checkpoint = make_checkpoint(tmp_path, big)
    load_packed(checkpoint, None, "auto", ThreadTeam(1))
    before = anonymous_bytes()
    packed = load_packed(checkpoint, None, "auto", ThreadTeam(1))
    assert int(packed.data[::4096].sum()) > 0  # every page is in memory now
    assert packed.data.size > 50_000_000
    assert anonymous_bytes() - before < 5_000_000


def test_the_second_start_maps_what_the_first_has_packed(cache: Path, checkpoint: Checkpoint) -> None:
    first, packing = load(checkpoint)
    [made] = files(cache)
    before = made.stat()
    steps, totals = zip(*packing, strict=True)
    assert list(steps) == sorted(steps)
    assert set(totals) == {before.st_size}
    assert steps[-1] <= before.st_size < steps[-1] + 64
    second, nothing = load(checkpoint)
    assert (second, nothing) == (first, [])
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    # Pages of the file, not a copy: other processes share them.
    model = NativeModel.load(checkpoint, threads=1)
    assert str(made) in Path("/proc/self/maps").read_text()
    del model


def test_each_way_to_store_the_weights_has_a_file_of_its_own(cache: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    choices: list[dict[str, Any]] = [{}, {"dtype": "bfloat16"}, {"quantize": "8bit"}, {"quantize": "4bit"}]
    with open_checkpoint(folder) as checkpoint:
        results = [load(checkpoint, **choice)[0] for choice in choices]
        assert len(files(cache)) == len(set(results)) == 4
        assert [load(checkpoint, **choice) for choice in choices] == [(result, []) for result in results]


def test_the_layout_is_as_documented(cache: Path, checkpoint: Checkpoint) -> None:
    load(checkpoint)
    [made] = files(cache)
    data = made.read_bytes()
    assert data.startswith(MAGIC)
    header = json.loads(data[16 : 16 + int.from_bytes(data[8:16], "little")])
    assert header["source"] == str(checkpoint.path.resolve())
    assert header["fingerprint"] == checkpoint.fingerprint
    assert list(header["tensors"]) == list(checkpoint.tensors)
    for name, (ggml_type, rows, cols, offset) in header["tensors"].items():
        tensor = checkpoint.tensors[name]
        assert (ggml_type, rows, cols) == (tensor.block_type.ggml_id, tensor.num_rows, tensor.shape[-1])
        assert offset % 64 == 0
        assert 16 + len(json.dumps(header)) <= offset < len(data)


def cut(length: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        os.truncate(path, length if length >= 0 else path.stat().st_size + length)

    return damage


def edit(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new, 1))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": cut(0),
    "magic alone": cut(8),
    "half a header": cut(200),
    "header alone": cut(4096),
    "half of it": cut(10_000),
    "the last page is missing": cut(-4096),
    "a few bytes are missing": cut(-64),
    "another version": edit(MAGIC, b"DSPACK99"),
    "an absurd header length": edit(MAGIC, MAGIC + b"\xff" * 7 + b"\x7f"),
    "no JSON": edit(b'{"source"', b"[}source"),
    "JSON of another kind": edit(b'"tensors"', b'"tensorz"'),
    "a tensor is missing": edit(b'"lm_head.weight"', b'"xx_head.weight"'),
    "another block type": edit(b'"lm_head.weight": [3,', b'"lm_head.weight": [2,'),
    "another shape": edit(b'"lm_head.weight": [3, 128,', b'"lm_head.weight": [3, 127,'),
    "no number": edit(b'"lm_head.weight": [3, 128', b'"lm_head.weight": [3, nul'),
    "too few numbers": edit(b'"lm_head.weight": [3, 128,', b'"lm_head.weight": [3128,  '),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(damage: str, cache: Path, checkpoint: Checkpoint) -> None:
    expected, _ = load(checkpoint)
    [made] = files(cache)
    whole = made.read_bytes()
    DAMAGES[damage](made)
    again, packing = load(checkpoint)
    assert again == expected
    assert packing
    assert [path.read_bytes() for path in files(cache)] == [whole]


def test_random_cuts_never_kill_the_process(cache: Path, checkpoint: Checkpoint) -> None:
    expected, _ = load(checkpoint)
    [made] = files(cache)
    size = made.stat().st_size
    for length in np.random.default_rng(0).integers(0, size, 40).tolist():
        os.truncate(made, length)
        assert load(checkpoint)[0] == expected


def test_what_is_outdated_goes_when_something_new_comes(cache: Path, tmp_path: Path) -> None:
    def new_file(name: str, seed: int) -> Checkpoint:
        (tmp_path / name).mkdir(exist_ok=True)
        return make_checkpoint(tmp_path / name, RECIPE, seed)

    kept, gone = new_file("kept", 0), new_file("gone", 0)
    load(kept), load(gone)
    by_source = {json.loads(path.read_bytes()[16:].split(b"}", 1)[0] + b"}}")["source"]: path for path in files(cache)}
    assert set(by_source) == {str(kept.path.resolve()), str(gone.path.resolve())}
    gone.path.unlink()
    abandoned, busy = cache / ".packing-old", cache / ".packing-now"
    abandoned.write_bytes(b"x")
    busy.write_bytes(b"x")
    os.utime(abandoned, (time.time() - 90_000,) * 2)
    (cache / "broken.dspack").write_bytes(b"nothing")
    first, _ = load(new_file("new", 1))
    assert by_source[str(kept.path.resolve())] in files(cache)
    assert by_source[str(gone.path.resolve())] not in files(cache)
    assert not abandoned.exists()
    assert busy.exists()
    assert not (cache / "broken.dspack").exists()
    busy.unlink()
    # The same path with another model in it: the old form is of no use to anybody.
    changed = tmp_path / "new" / "model-1.gguf"
    changed.write_bytes(new_file("other", 2).path.read_bytes())
    second, packing = load(open_checkpoint(changed))
    assert packing
    assert second != first
    assert len(files(cache)) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_and_nothing_is_left(
    code: int, cache: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFull, match=r"no room for the packed weights.*DRAFTSMITH_CACHE") as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value)
    assert files(cache) == []


def test_an_interrupted_packing_leaves_nothing(cache: Path, checkpoint: Checkpoint) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        NativeModel.load(checkpoint, threads=1, progress=interrupt)
    assert files(cache) == []
    expected, packing = load(checkpoint)
    assert packing
    assert load(checkpoint) == (expected, [])


def test_without_a_cache_the_weights_are_packed_into_memory(
    cache: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = load(checkpoint)
    in_the_way = tmp_path / "a file"
    in_the_way.write_bytes(b"not a folder")
    monkeypatch.setenv("DRAFTSMITH_CACHE", str(in_the_way))
    for _ in range(2):
        logits, packing = load(checkpoint)
        assert logits == expected
        assert packing
    assert in_the_way.read_bytes() == b"not a folder"
    assert len(files(cache)) == 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_cache_that_cannot_be_written_is_done_without(
    code: int, cache: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of other users, read-only disks. Permissions mean nothing to root, so the refusal is simulated."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    cache.mkdir(parents=True)
    with monkeypatch.context() as patched:
        for name in ("mkstemp", "TemporaryFile"):
            patched.setattr(tempfile, name, refuse)
        logits, packing = load(checkpoint)
    assert packing
    assert files(cache) == []
    assert logits == load(checkpoint)[0]


def test_two_threads_of_packing_write_the_same_file(cache: Path, checkpoint: Checkpoint) -> None:
    contents = []
    for threads in (1, 2):
        NativeModel.load(checkpoint, threads=threads)
        [made] = files(cache)
        contents.append(made.read_bytes())
        made.unlink()
    assert contents[0] == contents[1]


def test_the_mapped_bytes_cannot_be_written(cache: Path, checkpoint: Checkpoint) -> None:
    team = ThreadTeam(1)
    load_packed(checkpoint, None, "auto", team)
    mapped = load_packed(checkpoint, None, "auto", team)
    assert not mapped.data.flags.writeable
    assert len(files(cache)) == 1
