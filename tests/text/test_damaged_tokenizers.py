"""Damaged tokenizer files of every kind end in one sentence, quickly, whatever the damage."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from draftsmith.errors import TokenizerError
from draftsmith.text import Tokenizer
from draftsmith.text.protobuf import fields
from tests.support.made_tokenizers import (
    byte_level_gguf,
    byte_level_json,
    llama_json,
    sentencepiece_gguf,
    sentencepiece_model,
)

MODEL = sentencepiece_model()
SMALL_JSON: dict[str, Any] = {
    "added_tokens": [{"id": 4, "content": "<s>", "special": True}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": [["a", "b"]]},
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def tries(make: Any, *arguments: Any) -> Tokenizer | None:
    """The tokenizer, or None when it was refused in the proper way."""
    try:
        tokenizer: Tokenizer = make(*arguments)
    except TokenizerError as error:
        if "\n" in str(error):
            pytest.fail(f"the message has several lines: {error}")
        return None
    ids = tokenizer.encode("ab c<s>é", add_bos=False)
    tokenizer.decode(ids)
    return tokenizer


@given(cut=st.integers(0, len(MODEL)), place=st.integers(0, len(MODEL) - 1), byte=st.integers(0, 255))
@settings(max_examples=60)
def test_damaged_sentencepiece_models(cut: int, place: int, byte: int) -> None:
    # The trainer's settings at the end are what the format can be hurt by most, so half of the damage goes there.
    changed = bytearray(MODEL)
    changed[place] = byte
    tries(Tokenizer.from_sentencepiece, bytes(changed))
    changed[len(MODEL) - 1 - place % 300] = byte
    tries(Tokenizer.from_sentencepiece, bytes(changed))
    tries(Tokenizer.from_sentencepiece, MODEL[:cut])


@given(st.binary(max_size=200))
def test_no_bytes_break_the_protobuf_reader(data: bytes) -> None:
    try:
        sizes = [len(value) for _, value in fields(data) if isinstance(value, bytes)]
    except TokenizerError:
        return
    assert sum(sizes) <= len(data)


@given(st.binary(max_size=100))
def test_no_bytes_break_the_constructors(data: bytes) -> None:
    tries(Tokenizer.from_sentencepiece, data)
    tries(Tokenizer.from_json, data)


@given(path=st.lists(st.integers(0, 7), min_size=1, max_size=4), value=json_values)
@example(path=[0, 0, 0], value=[0])  # once an id that was a list
def test_any_value_in_any_place_of_tokenizer_json(path: list[int], value: Any) -> None:
    root = json.loads(json.dumps(SMALL_JSON))
    place, parent, key = root, None, None
    for step in path:
        keys = list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
        if not keys:
            break
        parent, key = place, keys[step % len(keys)]
        place = place[key]
    assert parent is not None
    parent[key] = value
    tries(Tokenizer.from_json, json.dumps(root).encode())


@given(
    st.dictionaries(st.sampled_from(["tokenizer_config", "special_tokens_map", "generation_config"]), json_values),
    st.dictionaries(
        st.sampled_from(
            ["bos_token", "eos_token", "add_bos_token", "chat_template", "added_tokens_decoder", "pad_token", "legacy"]
        ),
        json_values,
    ),
)
def test_any_settings_beside_the_tokenizer(config: dict[str, Any], inner: dict[str, Any]) -> None:
    assert tries(Tokenizer.from_json, json.dumps(SMALL_JSON).encode(), config) is not None
    tries(Tokenizer.from_json, json.dumps(SMALL_JSON).encode(), {**config, "tokenizer_config": inner})


def small_gguf(kind: str) -> dict[str, Any]:
    metadata = byte_level_gguf("gpt-2") if kind == "gpt2" else sentencepiece_gguf()
    for key in ("tokens", "scores", "token_type"):
        if f"tokenizer.ggml.{key}" in metadata:
            metadata[f"tokenizer.ggml.{key}"] = metadata[f"tokenizer.ggml.{key}"][:270]
    metadata["tokenizer.ggml.bos_token_id"] = metadata["tokenizer.ggml.eos_token_id"] = 1
    metadata.pop("tokenizer.ggml.merges", None)
    return {**metadata, **({"tokenizer.ggml.merges": ["a b"]} if kind == "gpt2" else {})}


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1.5, "1", [1], -1, 270])
def test_only_ids_are_ids(value: object) -> None:
    with pytest.raises(TokenizerError, match=r"bos_token_id is .*; expected a token id from 0 to 269"):
        Tokenizer.from_gguf({**small_gguf("llama"), "tokenizer.ggml.bos_token_id": value})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@given(index=st.integers(0, 20), value=json_values)
def test_any_value_under_any_key_of_gguf(kind: str, index: int, value: Any) -> None:
    metadata = small_gguf(kind)
    key = sorted(metadata)[index % len(metadata)]
    tries(Tokenizer.from_gguf, {**metadata, key: value})
    tries(Tokenizer.from_gguf, {k: v for k, v in metadata.items() if k != key})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_any_value_inside_the_arrays_of_gguf(kind: str) -> None:
    rng = random.Random(3)  # noqa: S311
    for _ in range(150):
        metadata = small_gguf(kind)
        key = rng.choice([key for key, value in metadata.items() if isinstance(value, list)])
        metadata[key] = list(metadata[key])
        metadata[key][rng.randrange(len(metadata[key]))] = rng.choice(
            ["", "x", " ", "a b c", -1, 99, 2.5, None, b"\xff"]
        )
        tries(Tokenizer.from_gguf, metadata)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.tokens": None}, "no list of strings named tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": []}, "the vocabulary has 0 tokens; expected from 1 to"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type has 1 entries; expected one for each"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "tokenizer.ggml.eos_token_id is 1000000; expected a token id from 0"),
        ({"tokenizer.ggml.merges": ["ab"]}, "the merge 'ab' is damaged"),
        ({"tokenizer.ggml.merges": ["a 世"]}, "the list of merges cannot be used"),
    ],
)
def test_messages_say_what_is_wrong(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason):
        Tokenizer.from_gguf({**byte_level_gguf("gpt-2"), **change})


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer.json nor tokenizer.model"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    assert Tokenizer.from_folder(tmp_path).kind == "sentencepiece-bpe"
    (tmp_path / "tokenizer.json").write_bytes(llama_json("prepend"))
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}", encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.chat_template, tokenizer.bos_id) == ("{{ 1 }}", 1)
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json is no JSON"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(TokenizerError, match=r"tokenizer.json is no JSON"):
        Tokenizer.from_json(byte_level_json("gpt-2")[:-5])
