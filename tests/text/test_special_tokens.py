"""Special tokens: never read from ordinary text, found when asked for, known by id."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from draftsmith.errors import TokenizerError
from draftsmith.text import Tokenizer
from tests.support.made_tokenizers import (
    SPECIAL,
    byte_level_gguf,
    byte_level_json,
    llama_json,
    sentencepiece_gguf,
    sentencepiece_model,
)

TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "json": lambda: Tokenizer.from_json(byte_level_json("smollm")),
    "gguf": lambda: Tokenizer.from_gguf(byte_level_gguf("llama-bpe")),
    "llama json": lambda: Tokenizer.from_json(llama_json("prepend")),
    "sentencepiece": lambda: Tokenizer.from_sentencepiece(sentencepiece_model()),
    "unigram": lambda: Tokenizer.from_sentencepiece(sentencepiece_model("unigram")),
    "sentencepiece gguf": lambda: Tokenizer.from_gguf(sentencepiece_gguf()),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def test_text_never_becomes_a_special_token(tokenizer: Tokenizer) -> None:
    for special in (*tokenizer.special_texts, *SPECIAL):
        for text in (special, f"a{special}b", f" {special} ", special * 3, f"<{special}", f"{special}{special[1:]}"):
            ids = tokenizer.encode(text, add_bos=False)
            assert not any(tokenizer.is_special(i) for i in ids)
            assert tokenizer.decode(ids) == text


def test_text_never_becomes_a_byte_token_by_name() -> None:
    for make in ("sentencepiece", "unigram", "sentencepiece gguf"):
        tokenizer = TOKENIZERS[make]()
        newline = tokenizer.id_of("\n")
        assert newline is not None
        assert newline in tokenizer.encode("\n")
        assert newline not in tokenizer.encode("<0x0A> x<0x0A>")


def test_special_tokens_are_parsed_when_asked_for(tokenizer: Tokenizer) -> None:
    for special in tokenizer.special_texts:
        token_id = tokenizer.id_of(special)
        assert token_id is not None
        assert tokenizer.is_special(token_id)
        ids = tokenizer.encode(f"a{special}b{special}", add_bos=False, parse_special=True)
        assert ids.count(token_id) == 2
        assert tokenizer.text_of(token_id) == special
        assert special not in tokenizer.decode(ids, skip_special=True)


def test_bos_is_put_once_and_only_where_the_original_does() -> None:
    llama = Tokenizer.from_json(llama_json("prepend"))
    assert llama.add_bos
    assert llama.encode("a")[0] == llama.bos_id == 1
    assert llama.encode("a", add_bos=False)[0] != 1
    smol = Tokenizer.from_json(byte_level_json("smollm"))
    assert not smol.add_bos
    assert smol.bos_id is None
    with pytest.raises(ValueError, match="no BOS"):
        smol.encode("a", add_bos=True)


def test_every_token_that_ends_a_reply_is_known() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_gguf("qwen2"))
    assert tokenizer.eos_ids[0] == tokenizer.id_of("<|im_end|>")
    assert {tokenizer.text_of(i) for i in tokenizer.eos_ids} == {"<|im_end|>", "<|endoftext|>", "</s>"}


def test_settings_beside_tokenizer_json_are_used() -> None:
    config = {
        "tokenizer_config": {
            "eos_token": {"content": "<|im_end|>"},
            "bos_token": "<s>",
            "pad_token": "<|endoftext|>",
            "add_bos_token": True,
            "chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}],
        },
        "generation_config": {"eos_token_id": [3, 5]},
    }
    tokenizer = Tokenizer.from_json(byte_level_json("qwen2"), config)
    assert tokenizer.add_bos
    assert tokenizer.text_of(tokenizer.encode("x")[0]) == "<s>"
    assert tokenizer.text_of(tokenizer.eos_ids[0]) == "<|im_end|>"
    assert {3, 5} < set(tokenizer.eos_ids)
    assert tokenizer.pad_id == tokenizer.id_of("<|endoftext|>")
    assert tokenizer.chat_template == "yes"
    assert Tokenizer.from_json(byte_level_json("qwen2"), {**config, "chat_template": "file"}).chat_template == "file"


def test_added_tokens_written_like_control_tokens_are_special_though_the_file_forgets_to_say_so() -> None:
    root: dict[str, Any] = json.loads(byte_level_json("qwen2"))
    for token in root["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer.from_json(json.dumps(root).encode(), {"tokenizer_config": {"eos_token": "</s>"}})
    special = {text for text in (*SPECIAL, "<tool_call>") if tokenizer.is_special(tokenizer.id_of(text) or 0)}
    assert special == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"}


def test_other_added_tokens_are_found_in_any_text() -> None:
    tokenizer = Tokenizer.from_json(byte_level_json("qwen2"))
    token_id = tokenizer.id_of("<tool_call>")
    assert tokenizer.encode("x<tool_call>y").count(token_id or -1) == 1
    assert not tokenizer.is_special(token_id or -1)


def test_id_of_goes_by_content() -> None:
    for make in TOKENIZERS.values():
        tokenizer = make()
        for token_id in range(tokenizer.vocab_size):
            content = tokenizer.token_bytes(token_id)
            try:
                found = tokenizer.id_of(content.decode())
            except UnicodeDecodeError:
                continue
            assert found is not None
            assert tokenizer.token_bytes(found) == content


def test_pieces_continue_a_text_without_another_space() -> None:
    for kind, after_special in (("prepend", "▁b"), ("always", "▁b"), ("first", "b"), ("never", "b")):
        tokenizer = Tokenizer.from_json(llama_json(kind))
        whole = tokenizer.encode("a b", add_bos=False)
        parts = tokenizer.encode_piece("a", after="start") + tokenizer.encode_piece(" b", after="text")
        assert tokenizer.decode(whole) == tokenizer.decode(parts) == "a b"
        ids = tokenizer.encode_piece("b", after="special")
        assert "".join(map(tokenizer.text_of, ids)) == after_special.replace("▁", " ")


def test_surrogates_are_no_text() -> None:
    tokenizer = Tokenizer.from_json(byte_level_json("gpt-2"))
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_unknown_rules_are_refused_by_name() -> None:
    with pytest.raises(TokenizerError, match=r"'klingon', which are unknown; use the model's Hugging Face folder"):
        Tokenizer.from_gguf({**byte_level_gguf("gpt-2"), "tokenizer.ggml.pre": "klingon"})
    with pytest.raises(TokenizerError, match=r"of the kind 'bert'; expected 'gpt2' or 'llama'"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "bert"})
