"""The tokenizer of a new model folder, written so that ``transformers`` and draftsmith read the same ids from it.

A folder's tokenizer files are taken over, cleaned of what other versions stumble over; a GGUF file's vocabulary, and a
tokenizer.model that stands alone, become a tokenizer.json.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftsmith.checkpoint.checkpoint import Checkpoint
from draftsmith.errors import TokenizerError

if TYPE_CHECKING:
    from draftsmith.text import Tokenizer

__all__ = ["write_tokenizer"]

_COPIED = ("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
_DEFAULT_CLASS = "PreTrainedTokenizerFast"


def write_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer, template: str | None, folder: Path) -> None:
    """Write the tokenizer's files into ``folder``, with ``template`` as the chat template.

    Raises TokenizerError when the written files would give other ids.
    """
    source = checkpoint.path if checkpoint.kind == "folder" else None
    for name in _COPIED if source is not None else ():
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    root = _tokenizer_json(checkpoint)
    if root is not None:
        _write(folder / "tokenizer.json", root)
    config = _read(source / "tokenizer_config.json") if source is not None else {}
    _write(folder / "tokenizer_config.json", _settled(config, tokenizer, template))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _check(tokenizer, folder, checkpoint)


def _tokenizer_json(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The content of tokenizer.json; None for a SentencePiece unigram model, which only tokenizer.model can state."""
    from draftsmith.text.read_folder import read_folder
    from draftsmith.text.read_gguf import read_gguf
    from draftsmith.text.write_json import older_merges, tokenizer_json

    if checkpoint.kind == "folder" and (checkpoint.path / "tokenizer.json").is_file():
        root = _read(checkpoint.path / "tokenizer.json")
        older_merges(root)
        return root
    parts = read_gguf(checkpoint.metadata) if checkpoint.kind == "gguf" else read_folder(checkpoint.path)
    return None if parts.kind == "unigram" else tokenizer_json(parts)


def _settled(config: dict[str, Any], tokenizer: Tokenizer, template: str | None) -> dict[str, Any]:
    """tokenizer_config.json, in words that transformers 4 and 5 both understand."""
    names = {"bos_token": tokenizer.bos_id, "pad_token": tokenizer.pad_id, "unk_token": tokenizer.unk_id}
    names["eos_token"] = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
    for name, token_id in names.items():
        if token_id is not None and not config.get(name):
            config[name] = tokenizer.text_of(token_id)
    config.pop("auto_map", None)  # points to code, which does not come along
    if str(config.get("tokenizer_class", "Backend")).endswith("Backend"):  # a class that transformers 4 lacks
        config["tokenizer_class"] = _DEFAULT_CLASS
    if isinstance(config.get("extra_special_tokens"), list):  # transformers 4 has a mapping of that name
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    config.setdefault("add_bos_token", tokenizer.add_bos)
    config.setdefault("clean_up_tokenization_spaces", False)
    config.pop("chat_template", None)
    if template is not None:
        config["chat_template"] = template
    return config


def _check(tokenizer: Tokenizer, folder: Path, checkpoint: Checkpoint) -> None:
    """What was written must be read as the tokenizer that it was written from."""
    from draftsmith.text import Tokenizer
    from draftsmith.text.probe import differing_line

    written = Tokenizer.from_folder(folder)
    if written.fingerprint() != tokenizer.fingerprint():
        raise TokenizerError(f"the vocabulary of {checkpoint.path} cannot be written as a tokenizer.json; use a folder")
    line = differing_line(written, tokenizer)
    if line is not None:
        raise TokenizerError(
            f"the tokenizer of {checkpoint.path} cannot be written as a tokenizer.json: it would cut {line[:40]!r} "
            "otherwise; use a folder that has one"
        )


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file that was read before, so it is sound; empty when there is none."""
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
