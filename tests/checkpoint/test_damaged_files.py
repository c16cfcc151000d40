"""Whatever is done to a GGUF or safetensors file, opening it works or says in one sentence why not, and soon."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftsmith.checkpoint import open_checkpoint, rope_frequencies
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.errors import CheckpointError
from tests.support.tiny_models import random_tensors, small_config, write_folder

NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    vocabulary = {
        "tokenizer.ggml.tokens": [f"token {index}" for index in range(40)],
        "tokenizer.ggml.scores": [float(-index) for index in range(40)],
        "tokenizer.ggml.token_type": [1] * 40,
    }
    write_gguf_model(path, small_config(), random_tensors(small_config()), vocabulary)
    return path


@pytest.fixture(scope="module")
def safetensors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("fuzz")) / "model.safetensors"


def open_bytes(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.gguf")
        if name == "model.safetensors":
            path = Path(folder, "model")
            write_folder(path)
            (path / name).write_bytes(content)
        else:
            path.write_bytes(content)
        tracemalloc.start()
        try:
            with open_checkpoint(path) as checkpoint:
                rope_frequencies(checkpoint.config.rope, checkpoint.config.head_dim)
            message = ""
        except CheckpointError as error:
            message = str(error)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert "\n" not in message
    assert len(message) < 1000
    assert peak < 8 << 20


@given(data=st.data())
@settings(max_examples=150)
def test_truncated_gguf(gguf_file: Path, data: st.DataObject) -> None:
    content = gguf_file.read_bytes()
    open_bytes(content[: data.draw(st.integers(0, len(content) - 1))], "m.gguf")


@given(data=st.data())
@settings(max_examples=400)
def test_corrupt_gguf(gguf_file: Path, data: st.DataObject) -> None:
    """Bytes or whole numbers in the header (some 4 kB) are replaced."""
    content = bytearray(gguf_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, 4096))
        width = data.draw(st.sampled_from([1, 4, 8]))
        number = data.draw(st.sampled_from(NUMBERS) | st.integers(0, 2**64 - 1))
        content[where : where + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    open_bytes(bytes(content), "m.gguf")


@given(content=st.binary(max_size=200))
def test_random_bytes_are_no_gguf(content: bytes) -> None:
    open_bytes(content, "m.gguf")
    open_bytes(b"GGUF\x03\x00\x00\x00" + content, "m.gguf")


@given(
    edits=st.lists(st.tuples(st.integers(0, 2300), st.binary(max_size=8)), max_size=3),
    kept=st.just(1.0) | st.floats(0, 1),
)
@settings(max_examples=200)
def test_corrupt_safetensors(safetensors_file: Path, edits: list[tuple[int, bytes]], kept: float) -> None:
    """Bytes of the header (some 2 kB) are replaced, left out or put in, and the file is cut short."""
    content = bytearray(safetensors_file.read_bytes())
    for where, replacement in edits:
        content[where : where + 1] = replacement
    open_bytes(bytes(content[: int(kept * len(content))]), "model.safetensors")
