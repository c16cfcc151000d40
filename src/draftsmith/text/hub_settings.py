"""What the small JSON files of a Hugging Face folder say about its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from draftsmith.text.parts import Parts, TokenizerKind, reply_ends, token_type
from draftsmith.text.splitting import AddedToken, PrefixRule
from draftsmith.text.vocabulary import TokenType, Vocabulary

__all__ = ["Addition", "HubSettings", "additions_of"]


@dataclass(frozen=True, slots=True)
class Addition:
    """An added token as the files list it; ``special`` as they say, before our own judgement."""

    token: AddedToken
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """Texts of the special tokens, ids where only ids are given, and flags; None where nothing is said."""

    name: str
    bos: str | None
    eos: str | None
    pad: str | None
    unk: str | None
    named: frozenset[str]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    add_bos: bool | None
    legacy: bool
    add_prefix_space: bool | None
    chat_template: str | None
    additions: tuple[Addition, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> HubSettings:
        """Read ``config`` as Tokenizer.from_json describes it; entries of the wrong type count as absent."""
        tokenizer, special = _mapping(config, "tokenizer_config"), _mapping(config, "special_tokens_map")
        model, generation = _mapping(config, "config"), _mapping(config, "generation_config")
        texts = {
            name: _text(tokenizer.get(f"{name}_token")) or _text(special.get(f"{name}_token"))
            for name in ("bos", "eos", "pad", "unk")
        }
        extra = [*_items(tokenizer, "additional_special_tokens"), *_items(special, "additional_special_tokens")]
        add_bos, prefix = tokenizer.get("add_bos_token"), tokenizer.get("add_prefix_space")
        return cls(
            name=str(tokenizer.get("tokenizer_class") or model.get("model_type") or "tokenizer"),
            named=frozenset(text for text in (*texts.values(), *map(_text, extra)) if text),
            bos_id=_first_id(generation.get("bos_token_id"), model.get("bos_token_id")),
            eos_ids=(*_ids(generation.get("eos_token_id")), *_ids(model.get("eos_token_id"))),
            pad_id=_first_id(generation.get("pad_token_id"), model.get("pad_token_id")),
            add_bos=add_bos if isinstance(add_bos, bool) else None,
            legacy=tokenizer.get("legacy") is not False,
            add_prefix_space=prefix if isinstance(prefix, bool) else None,
            chat_template=_template(config.get("chat_template")) or _template(tokenizer.get("chat_template")),
            additions=tuple(_config_additions(config)),
            bos=texts["bos"],
            eos=texts["eos"],
            pad=texts["pad"],
            unk=texts["unk"],
        )

    def type_of(self, addition: Addition) -> TokenType:
        """Special tokens are control tokens; other added tokens are found in any text."""
        stated = TokenType.CONTROL if addition.special else TokenType.USER_DEFINED
        return token_type(stated, addition.token.text, named=addition.token.text in self.named)

    def parts(
        self,
        vocabulary: Vocabulary,
        *,
        kind: TokenizerKind,
        encoder: Any,
        additions: Mapping[int, Addition],
        prefix: PrefixRule,
        strips_leading_space: bool,
        default_bos: int | None,
        default_eos: int | None = None,
        default_unk: int | None = None,
        default_add_bos: bool = False,
    ) -> Parts:
        """Parts of a tokenizer; the defaults are what its main file says where these settings say nothing."""
        literal = {vocabulary.pieces[i]: i for i in vocabulary.types}

        def find(text: str | None) -> int | None:
            found = literal.get(text) if text is not None else None
            return found if found is not None or text is None else vocabulary.id_of(text)

        bos, pad, unk, size = find(self.bos), find(self.pad), find(self.unk), len(vocabulary.pieces)
        bos = bos if bos is not None else default_bos
        bos = bos if bos is not None or self.bos_id is None or self.bos_id >= size else self.bos_id
        pad = pad if pad is not None or self.pad_id is None or self.pad_id >= size else self.pad_id
        add_bos = default_add_bos if self.add_bos is None else self.add_bos
        return Parts(
            kind=kind,
            name=self.name,
            vocabulary=vocabulary,
            encoder=encoder,
            added=tuple(
                additions[i].token if i in additions else AddedToken(i, vocabulary.pieces[i])
                for i, kind_of in vocabulary.types.items()
                if kind_of in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
            ),
            prefix=prefix,
            strips_leading_space=strips_leading_space,
            bos_id=bos,
            eos_ids=reply_ends(vocabulary, (find(self.eos), *self.eos_ids, default_eos)),
            pad_id=pad,
            unk_id=unk if unk is not None else default_unk,
            add_bos=add_bos and bos is not None,
            chat_template=self.chat_template,
        )


def additions_of(entries: Any) -> Iterator[Addition]:
    """The entries of tokenizer.json's ``added_tokens`` that are well formed."""
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("content"), str) and _ids([entry.get("id")]):
            flags = {flag: entry.get(flag) is True for flag in ("lstrip", "rstrip", "single_word")}
            yield Addition(AddedToken(entry["id"], entry["content"], **flags), entry.get("special") is True)


def _config_additions(config: Mapping[str, Any]) -> Iterator[Addition]:
    """Tokens that tokenizer_config.json or added_tokens.json add to the main file's."""
    for text, token_id in _mapping(config, "added_tokens").items():
        if _ids([token_id]):
            yield Addition(AddedToken(token_id, str(text)), special=False)
    for key, entry in _mapping(_mapping(config, "tokenizer_config"), "added_tokens_decoder").items():
        if isinstance(entry, Mapping) and str(key).isdecimal():
            yield from additions_of([{**entry, "id": int(key)}])


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _items(values: Mapping[str, Any], key: str) -> list[Any]:
    found = values.get(key)
    return list(found) if isinstance(found, list | tuple) else []


def _text(value: Any) -> str | None:
    """A special token as the files write it: a string, or a mapping with ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _ids(value: Any) -> list[int]:
    """Ids as the files write them: nothing, one, or several."""
    values = value if isinstance(value, list | tuple) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]


def _first_id(*values: Any) -> int | None:
    return next((found for value in values for found in _ids(value)), None)


def _template(value: Any) -> str | None:
    """A chat template: a string, or a list of named ones of which ``default`` counts."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, Mapping)}
        value = named.get("default")
    return value if isinstance(value, str) and value else None
