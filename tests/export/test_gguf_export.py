"""GGUF files: the same logits, ids and templates come back, whatever the source; what GGUF cannot say is refused."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftsmith.checkpoint import open_checkpoint
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT
from draftsmith.errors import CheckpointError, DiskFull, TokenizerError
from draftsmith.export.gguf import GGUF_TYPES, gguf_type, write_gguf_export
from draftsmith.export.source import opened
from draftsmith.export.weights import encoded, weights_of
from draftsmith.quant import BlockType, dequantize, quantize
from draftsmith.text import Tokenizer
from draftsmith.text.read_json import read_json
from draftsmith.text.read_sentencepiece import read_sentencepiece
from draftsmith.text.write_gguf import gguf_tokenizer
from tests.support.made_tokenizers import (
    ALWAYS,
    byte_level_gguf,
    byte_level_json,
    corpus,
    llama_json,
    sentencepiece_gguf,
    sentencepiece_model,
)
from tests.support.tiny import tiny_folder
from tests.support.tiny_models import random_tensors, small_config, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


def exported(source: Path, out: Path, wanted: BlockType | None = None) -> dict[str, Any]:
    with opened(str(source)) as opened_source:
        return write_gguf_export(opened_source, out, wanted)


def test_a_folder_comes_back_the_same(folder: Path, tmp_path: Path) -> None:
    report = exported(folder, tmp_path / "m.gguf", BlockType.F32)
    with open_checkpoint(folder) as original, open_checkpoint(tmp_path / "m.gguf") as copy:
        for name, tensor in original.tensors.items():
            np.testing.assert_array_equal(copy.tensors[name].dequantize(), tensor.dequantize())
        before, after = original.tokenizer(), copy.tokenizer()
        assert copy.config.vocab_size == original.config.vocab_size
    assert after.fingerprint() == before.fingerprint()
    assert after.chat_template == before.chat_template
    assert (after.eos_ids, after.bos_id, after.add_bos) == (before.eos_ids, before.bos_id, before.add_bos)
    for text in corpus()[:200]:
        assert after.encode(text) == before.encode(text)
    assert report["num_bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert report["block_types"] == {"F32": report["parameters"]}


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_every_type_holds_what_its_encoder_gives(folder: Path, tmp_path: Path, name: str) -> None:
    wanted = GGUF_TYPES[name]
    exported(folder, tmp_path / "m.gguf", wanted)
    with open_checkpoint(folder) as original, open_checkpoint(tmp_path / "m.gguf") as copy:
        for tensor_name, tensor in copy.tensors.items():
            source = original.tensors[tensor_name].dequantize()
            expected = dequantize(tensor.block_type, quantize(tensor.block_type, source), source.shape)
            np.testing.assert_array_equal(tensor.dequantize(), expected, err_msg=tensor_name)
        if wanted.is_quantized:
            assert copy.tensors[EMBEDDING].block_type is copy.tensors[OUTPUT].block_type is BlockType.Q8_0
        assert copy.tensors["model.norm.weight"].block_type is BlockType.F32
        down = copy.tensors["model.layers.0.mlp.down_proj.weight"]  # 128 columns: no Q4_K there
        assert down.block_type is (BlockType.Q4_1 if wanted is BlockType.Q4_K else wanted)
        reader = gguf.GGUFReader(tmp_path / "m.gguf")
        assert reader.fields["general.file_type"].contents() == {
            "f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_1": 3, "q4_k": 3,
        }[name]  # fmt: skip


def test_rows_of_256_become_q4_k(tmp_path: Path) -> None:
    config = small_config(hidden_size=256, intermediate_size=512)
    write_folder(tmp_path / "m", random_tensors(config), hidden_size=256, intermediate_size=512)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        types = {name: gguf_type(w, BlockType.Q4_K) for name, w in weights_of(checkpoint).weights.items()}
    assert types["model.layers.1.mlp.down_proj.weight"] is BlockType.Q4_K
    assert types["model.layers.1.self_attn.o_proj.weight"] is BlockType.Q4_1  # 64 columns
    assert types[EMBEDDING] is BlockType.Q8_0


def test_blocks_of_a_gguf_file_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    exported(folder, tmp_path / "a.gguf", BlockType.Q4_0)
    report = exported(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with open_checkpoint(tmp_path / "a.gguf") as first, open_checkpoint(tmp_path / "b.gguf") as second:
        for name, tensor in first.tensors.items():
            assert second.tensors[name].data.tobytes() == tensor.data.tobytes()
        keys = {key: value for key, value in first.metadata.items() if key.startswith("tokenizer.")}
        assert keys.items() <= second.metadata.items()
        assert second.metadata["general.name"] == first.metadata["general.name"] == "tiny"
    assert report["notes"] == []
    again = exported(tmp_path / "a.gguf", tmp_path / "c.gguf", BlockType.Q4_1)
    assert "rounded a second time" in again["notes"][0]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "smaug-bpe"])
def test_byte_level_tokenizers(pre: str) -> None:
    """The ids are those of the tokenizer.json, and the keys those that converters write."""
    parts = read_json(byte_level_json(pre), {})
    keys = gguf_tokenizer(parts, parts.vocabulary.size + 7)
    known = byte_level_gguf(pre, padding=7)
    for name in ("model", "pre", "tokens", "token_type", "merges"):
        assert keys[f"tokenizer.ggml.{name}"] == known[f"tokenizer.ggml.{name}"]
    before, after = Tokenizer(parts), Tokenizer.from_gguf(keys)
    assert all(before.encode(text, add_bos=False) == after.encode(text, add_bos=False) for text in corpus())


@pytest.mark.parametrize("source", ["tokenizer.model", "prepend", "always", "first", "never"])
def test_sentencepiece_tokenizers(source: str) -> None:
    """Inside a text all ids agree; before its first word, and after tokens that are found in any text, GGUF knows no
    other space than SentencePiece's own."""
    if source == "tokenizer.model":
        parts = read_sentencepiece(sentencepiece_model(), {})
    else:
        parts = read_json(llama_json(source), {})
    keys = gguf_tokenizer(parts, parts.vocabulary.size)
    known = sentencepiece_gguf()
    assert keys["tokenizer.ggml.tokens"][:900] == known["tokenizer.ggml.tokens"][:900]
    assert keys["tokenizer.ggml.add_space_prefix"] is (source != "never")
    before, after = Tokenizer(parts), Tokenizer.from_gguf(keys)
    for text in (text for text in corpus() if not any(token in text for token in ALWAYS)):
        assert before.encode_piece(text, after="text") == after.encode_piece(text, after="text")


def test_tokenizers_that_gguf_cannot_state(tmp_path: Path) -> None:
    unigram = read_sentencepiece(sentencepiece_model("unigram"), {})
    with pytest.raises(TokenizerError, match="unigram"):
        gguf_tokenizer(unigram, unigram.vocabulary.size)
    parts = read_json(byte_level_json("gpt-2"), {})
    with pytest.raises(TokenizerError, match="only 10 rows"):
        gguf_tokenizer(parts, 10)
    other = tiny_folder(tmp_path / "other")
    root = json.loads((other / "tokenizer.json").read_text())
    pattern = {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False}
    root["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, root["pre_tokenizer"]]}
    (other / "tokenizer.json").write_text(json.dumps(root))
    with pytest.raises(TokenizerError, match="by rules for which GGUF has no name"):
        exported(other, tmp_path / "m.gguf")
    root["pre_tokenizer"], root["normalizer"] = root["pre_tokenizer"]["pretokenizers"][1], {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(root))
    with pytest.raises(TokenizerError, match="no name"):
        exported(other, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_normalising_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    """llama.cpp does not squeeze spaces; the ids would differ, and the comparison before writing finds it."""
    folder = tiny_folder(tmp_path / "sp")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(plain=False))
    config = json.loads((folder / "config.json").read_text())
    size = len(sentencepiece_gguf()["tokenizer.ggml.tokens"]) + 50
    write_folder(folder, random_tensors(small_config(vocab_size=size)), vocab_size=size)
    assert config["vocab_size"] != size
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TokenizerError, match="would be cut otherwise"):
        exported(folder, tmp_path / "m.gguf")


def test_values_that_a_type_cannot_hold(tmp_path: Path) -> None:
    big = tiny_folder(tmp_path / "big")
    with open_checkpoint(big) as checkpoint:
        weights = weights_of(checkpoint)
    weight = weights.weights["model.layers.0.mlp.up_proj.weight"]
    values = np.full(weight.shape, 1e5, np.float32)
    huge = type(weight)(weight.name, weight.shape, lambda start, stop: values[start:stop], None)
    for block_type in (BlockType.F16, BlockType.Q8_0):
        with pytest.raises(CheckpointError, match="65504"):
            _ = encoded(huge, block_type).data
    assert encoded(huge, BlockType.BF16).data.size == values.size * 2


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "there" / "m.gguf"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull, match="no space left"):
        exported(folder, out)
    assert list(out.parent.iterdir()) == []


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1 << 20), columns=st.sampled_from([64, 256]), name=st.sampled_from(sorted(GGUF_TYPES)))
def test_parts_and_threads_change_nothing(seed: int, columns: int, name: str) -> None:
    """Encoding in parts by several threads gives the bytes of encoding all at once."""
    values = np.random.default_rng(seed).standard_normal((37, columns)).astype(np.float32)
    block_type = GGUF_TYPES[name] if columns % GGUF_TYPES[name].block_size == 0 else BlockType.Q8_0
    from draftsmith.export import weights

    weight = weights.Weight("w", values.shape, lambda start, stop: values[start:stop], None)
    whole = quantize(block_type, values)
    previous, weights.PART_VALUES = weights.PART_VALUES, 5 * columns  # type: ignore[misc]
    try:
        assert encoded(weight, block_type, threads=3).data.tobytes() == whole.tobytes()
    finally:
        weights.PART_VALUES = previous  # type: ignore[misc]
