"""Small real tokenizers, trained in the test by the original libraries, which are then the oracles."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from functools import cache
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from draftsmith.text.pretokenizers import PRE_TOKENIZERS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>")
ALWAYS = ("<tool_call>", "</tool_call>")

_TEXT = """
the quick brown fox jumps over a lazy dog while twelve small tokens wait for their target model and its draft
speculative decoding keeps every token identical def return import class self None True print for in range if
don't I'll we've they're it's café naïve über größer señor привет мир друзья こんにちは 世界 日本語 中文 你好
한국어 مرحبا שלום नमस्ते 3.14159 2026 100,000 x=1; y+=2 {} [] () -> == != <= ### Instruction: Input: Response:
"""
_WORDS = _TEXT.split()


def training_lines() -> list[str]:
    """Words in random order, with code, runs of spaces and of signs."""
    rng = random.Random(1)  # noqa: S311
    lines = [" ".join(rng.choices(_WORDS, k=12)) for _ in range(1500)]
    lines += [" " * rng.randrange(1, 20) + f"if x{n} == {n * 37}:" + " " * rng.randrange(9) for n in range(300)]
    return lines + ["-" * rng.randrange(1, 40) + "=" * rng.randrange(1, 20) for _ in range(100)]


@cache
def corpus() -> tuple[str, ...]:
    """What ids are compared on: words known and unknown, scripts, emoji, runs, special tokens, control characters."""
    rng = random.Random(2)  # noqa: S311
    emoji = ["🎉", "👨‍👩‍👧‍👦", "🇩🇪", "é", "ﬁ", "ſ", "İ", "①", "ⅷ", "\u200b", "\x00", "\x7f", "▁", "￿", "\r\n", "½"]
    marks = [*SPECIAL, *ALWAYS, "<unk>", "<0x0A>", "<|", "|>", "[INST]", "### Input:"]
    blocks = [(0x20, 0x7E), (0xA1, 0x2FF), (0x370, 0x5FF), (0x900, 0x97F), (0x3040, 0x30FF), (0x4E00, 0x9FFF)]
    blocks += [(0x1F300, 0x1FAFF), (0x300, 0x36F), (0xAC00, 0xD7A3), (0x10000, 0x10FFFF), (0x2000, 0x206F)]
    texts = ["", " ", "  ", "\n", " a", "a ", "don't I'LL", "\n\n\n  x", "\t\tif a:\n\t\t\tb"]
    for _ in range(1500):
        parts = []
        for _ in range(rng.randrange(1, 12)):
            low, high = rng.choice(blocks)
            choices = [
                rng.choice(_WORDS) + rng.choice(["", " ", ", "]),
                rng.choice(" \n\t\r-=a1.") * rng.randrange(1, 30),
                rng.choice(emoji),
                rng.choice(marks),
                "".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 8))),
                "".join(rng.choice("0123456789.,") for _ in range(rng.randrange(1, 12))),
            ]
            parts.append(rng.choice(choices))
        texts.append("".join(parts))
    return tuple(texts)


@cache
def byte_level_json(pre: str) -> bytes:
    """A tokenizer.json with byte-level BPE and the rules of the model that ``pre`` names in GGUF files."""
    original = tokenizers.Tokenizer(models.BPE())
    rules = PRE_TOKENIZERS[pre]
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.splits]
    if rules.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.gpt2))
    original.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if rules.nfc:
        original.normalizer = normalizers.NFC()
    original.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    original.train_from_iterator(training_lines(), trainer)
    original.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    original.add_tokens([AddedToken(text, special=False, normalized=False) for text in ALWAYS])
    root = json.loads(original.to_str())
    root["model"]["ignore_merges"] = rules.ignore_merges
    return json.dumps(root).encode()


def byte_level_gguf(pre: str, *, padding: int = 0) -> dict[str, Any]:
    """The same vocabulary as GGUF metadata, with ``padding`` more entries as converters add them."""
    root = json.loads(byte_level_json(pre))
    ids = {**root["model"]["vocab"], **{token["content"]: token["id"] for token in root["added_tokens"]}}
    pieces = sorted(ids, key=lambda piece: ids[piece])
    types = [1] * len(pieces)
    for token in root["added_tokens"]:
        types[token["id"]] = 3 if token["special"] else 4
    pieces += [f"[PAD{n}]" for n in range(len(pieces), len(pieces) + padding)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types + [5] * padding,
        "tokenizer.ggml.merges": [
            pair if isinstance(pair, str) else " ".join(pair) for pair in root["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.eos_token_id": ids["<|im_end|>"],
        "tokenizer.ggml.add_bos_token": False,
    }


@cache
def sentencepiece_model(kind: str = "bpe", *, plain: bool = True) -> bytes:
    """A tokenizer.model with byte fallback. ``plain``: no normalisation, as Llama's; else SentencePiece's defaults."""
    out = io.BytesIO()
    options: Mapping[str, Any] = (
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False} if plain else {}
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines()),
        model_writer=out,
        model_type=kind,
        vocab_size=900,
        byte_fallback=True,
        hard_vocab_limit=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return out.getvalue()


def sentencepiece_gguf() -> dict[str, Any]:
    """The plain BPE model as GGUF metadata."""
    original = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    ids = range(original.get_piece_size())
    kinds = [
        2 if original.is_unknown(i) else 3 if original.is_control(i) else 6 if original.is_byte(i) else 1 for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [original.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [original.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@cache
def llama_json(prefix: str) -> bytes:
    """The plain SentencePiece BPE model as a tokenizer.json in Llama's manner.

    ``prefix`` is where the space before the first word comes from: "prepend" (a normalizer, older files), or the scheme
    of a Metaspace pre-tokenizer: "always", "first", "never".
    """
    from draftsmith.text.bpe import merges_from_scores
    from draftsmith.text.vocabulary import TokenType, Vocabulary

    gguf = sentencepiece_gguf()
    pieces = gguf["tokenizer.ggml.tokens"]
    types = {i: TokenType(kind) for i, kind in enumerate(gguf["tokenizer.ggml.token_type"]) if kind != 1}
    merges = merges_from_scores(Vocabulary(pieces, types, False), gguf["tokenizer.ggml.scores"])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)  # noqa: S106
    original = tokenizers.Tokenizer(model)
    if prefix == "prepend":
        steps: list[Any] = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        original.normalizer = normalizers.Sequence(steps)
    else:
        original.pre_tokenizer = pre_tokenizers.Metaspace("▁", prefix, split=False)
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix != "never" else []
    original.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    original.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    original.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    original.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL[:3]])
    original.add_tokens([AddedToken(text, special=False, normalized=False) for text in ALWAYS])
    return original.to_str().encode()
