"""Tokenizers from Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from draftsmith.errors import TokenizerError
from draftsmith.text.parts import Parts
from draftsmith.text.read_json import read_json
from draftsmith.text.read_sentencepiece import read_sentencepiece

__all__ = ["read_folder"]

_SETTINGS = ("tokenizer_config", "special_tokens_map", "generation_config", "config", "added_tokens")


def read_folder(folder: Path) -> Parts:
    """tokenizer.json where there is one, else tokenizer.model, with the settings beside it. Raises TokenizerError."""
    config: dict[str, Any] = {}
    for name in _SETTINGS:
        data = _read(folder / f"{name}.json")
        if data is not None:
            try:
                config[name] = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise TokenizerError(f"{folder / name}.json is no JSON ({error}); get the file again") from error
    template = _read(folder / "chat_template.jinja")
    if template is not None:
        config["chat_template"] = template.decode("utf-8", "replace")
    data = _read(folder / "tokenizer.json")
    if data is not None:
        return read_json(data, config)
    data = _read(folder / "tokenizer.model")
    if data is not None:
        return read_sentencepiece(data, config)
    raise TokenizerError(f"{folder} has neither tokenizer.json nor tokenizer.model; one of them is needed")


def _read(path: Path) -> bytes | None:
    """A file's bytes; None when it does not exist."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror or error})") from error
