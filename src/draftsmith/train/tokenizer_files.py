"""The tokenizer of a trained model, written so that ``transformers`` and draftsmith read the same ids from it.

A folder's tokenizer files are copied. A GGUF file's vocabulary becomes a tokenizer.json.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from draftsmith.checkpoint import Checkpoint
from draftsmith.errors import TokenizerError
from draftsmith.text import PromptFormat, Tokenizer
from draftsmith.text.parts import Parts
from draftsmith.text.read_gguf import read_gguf
from draftsmith.text.vocabulary import TokenType

__all__ = ["write_tokenizer"]

_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
)


def write_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer, prompt_format: PromptFormat, folder: Path) -> None:
    """Write the tokenizer's files into ``folder``, with the prompt format as its chat template.

    Raises TokenizerError when the written files would give other ids.
    """
    if checkpoint.kind == "folder":
        for name in _COPIED:
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, folder / name)
    else:
        parts = read_gguf(checkpoint.metadata)
        _write(folder / "tokenizer.json", _tokenizer_json(parts))
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = {"bos_token": tokenizer.bos_id, "pad_token": tokenizer.pad_id, "unk_token": tokenizer.unk_id}
    names["eos_token"] = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
    for name, token_id in names.items():
        if token_id is not None and not config.get(name):
            config[name] = tokenizer.text_of(token_id)
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    config.setdefault("add_bos_token", tokenizer.add_bos)
    config.setdefault("clean_up_tokenization_spaces", False)
    config["chat_template"] = prompt_format.template
    _write(path, config)
    (folder / "chat_template.jinja").write_text(prompt_format.template, encoding="utf-8")
    if Tokenizer.from_folder(folder).fingerprint() != tokenizer.fingerprint():
        raise TokenizerError(f"the vocabulary of {checkpoint.path} cannot be written as a tokenizer.json; use a folder")


def _tokenizer_json(parts: Parts) -> dict[str, Any]:
    """The parts of a GGUF tokenizer in the form of the ``tokenizers`` library."""
    root: dict[str, Any] = json.loads(parts.encoder.to_str())
    vocabulary = parts.vocabulary
    root["added_tokens"] = [
        {
            "id": token_id,
            "content": vocabulary.pieces[token_id],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": vocabulary.is_special(token_id),
        }
        for token_id, kind in sorted(vocabulary.types.items())
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED) and vocabulary.pieces[token_id]
    ]
    # The library gives an added token the id that the model's vocabulary has for it, whatever number stands beside it.
    placed = {token["id"]: token["content"] for token in root["added_tokens"]}
    ordinary = {piece: i for piece, i in root["model"]["vocab"].items() if i not in placed}
    root["model"]["vocab"] = ordinary | {content: token_id for token_id, content in placed.items()}
    if parts.kind == "byte-bpe":
        root["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    else:
        _spell_spaces(root, strip=parts.strips_leading_space)
        for token_id, kind in vocabulary.types.items():  # bytes are ordinary entries there
            if kind is TokenType.BYTE:
                root["model"]["vocab"].setdefault(vocabulary.pieces[token_id], token_id)
    if parts.add_bos and parts.bos_id is not None:
        begin = vocabulary.pieces[parts.bos_id]
        first = {"SpecialToken": {"id": begin, "type_id": 0}}
        root["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {begin: {"id": begin, "ids": [parts.bos_id], "tokens": [begin]}},
        }
    return root


def _spell_spaces(root: dict[str, Any], *, strip: bool) -> None:
    """SentencePiece's way with spaces: one before the text, all written as ▁."""
    before = [{"type": "Prepend", "prepend": "▁"}] if strip else []
    root["normalizer"] = {
        "type": "Sequence",
        "normalizers": [*before, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
    }
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if strip else []
    root["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *after,
        ],
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
