"""Tokenizers from tokenizer.json, the format of the ``tokenizers`` library."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from draftsmith.errors import TokenizerError
from draftsmith.text.bpe import Merge, bpe_model, encoder_of, split_merges, unigram_model
from draftsmith.text.hub_settings import Addition, HubSettings, additions_of
from draftsmith.text.parts import Parts, TokenizerKind
from draftsmith.text.splitting import PrefixRule
from draftsmith.text.vocabulary import WORD_BOUNDARY, TokenType, Vocabulary, byte_value, check_size

__all__ = ["read_json"]

Node = dict[str, Any]


def read_json(data: bytes, config: Mapping[str, Any]) -> Parts:
    """Parts of the tokenizer in ``data``; ``config`` as Tokenizer.from_json describes it. Raises TokenizerError."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"tokenizer.json is no JSON ({error}); get the file again") from error
    if not isinstance(root, dict) or not isinstance(root.get("model"), dict):
        raise TokenizerError("tokenizer.json has no object named model; get the file again")
    model = root["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind not in ("BPE", "Unigram"):
        raise TokenizerError(f"tokenizer.json holds a model of the kind {kind!r}; expected BPE or Unigram")
    settings = HubSettings.of(config)
    additions = {a.token.token_id: a for a in (*additions_of(root.get("added_tokens")), *settings.additions)}
    byte_level = _is_byte_level(root)
    vocabulary, scores = _vocabulary(model, settings, additions, byte_level=byte_level)
    pipeline = {key: copy.deepcopy(root.get(key)) for key in ("normalizer", "pre_tokenizer")}
    prefix = _take_prefix(pipeline)
    unk_id = _unknown(model, vocabulary)
    built = _bpe(model, vocabulary) if kind == "BPE" else unigram_model(vocabulary, scores, unk_id)
    starts = _post_processor_bos(root.get("post_processor"))
    literal = {vocabulary.pieces[i]: i for i in vocabulary.types}
    default_bos = next((literal[text] for text in starts if text in literal), None)
    kinds: dict[str, TokenizerKind] = {"BPE": "byte-bpe" if byte_level else "sentencepiece-bpe", "Unigram": "unigram"}
    return settings.parts(
        vocabulary,
        kind=kinds[kind],
        encoder=encoder_of(built, pipeline),
        additions=additions,
        prefix=prefix,
        strips_leading_space=_strips_space(root),
        default_bos=default_bos,
        default_unk=unk_id,
        default_add_bos=default_bos is not None,
    )


def _vocabulary(
    model: Node, settings: HubSettings, additions: Mapping[int, Addition], *, byte_level: bool
) -> tuple[Vocabulary, list[float]]:
    """The vocabulary with its added tokens, and the scores of a unigram model (else empty)."""
    vocab, scores = model.get("vocab"), []
    if isinstance(vocab, list):
        try:
            scores = [float(score) for _, score in vocab]
            vocab = {piece: i for i, (piece, _) in reversed(list(enumerate(vocab)))}
        except (TypeError, ValueError) as error:
            raise TokenizerError("the vocabulary of tokenizer.json is no list of pieces and scores") from error
    if not isinstance(vocab, dict) or not set(map(type, vocab.values())) <= {int}:
        raise TokenizerError("the vocabulary of tokenizer.json does not map pieces to ids; get the file again")
    if vocab and min(vocab.values()) < 0:
        raise TokenizerError("the vocabulary of tokenizer.json holds a negative id; get the file again")
    size = 1 + max((*vocab.values(), *additions), default=-1)
    check_size(size)
    pieces = [""] * size
    for piece, token_id in vocab.items():
        pieces[token_id] = piece
    types = {}
    if model.get("byte_fallback"):
        types = {i: TokenType.BYTE for piece, i in vocab.items() if byte_value(piece) is not None}
    for token_id, addition in additions.items():
        pieces[token_id] = addition.token.text
        types[token_id] = settings.type_of(addition)
    scores += [0.0] * (size - len(scores))
    return Vocabulary(pieces, types, byte_level), scores


def _bpe(model: Node, vocabulary: Vocabulary) -> Any:
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise TokenizerError("tokenizer.json marks the ends of words inside its pieces, which is not supported")
    merges = model.get("merges") or []
    return bpe_model(
        vocabulary,
        _merges(merges),
        unk=model.get("unk_token"),
        fuse_unk=model.get("fuse_unk") is True,
        byte_fallback=model.get("byte_fallback") is True,
        ignore_merges=model.get("ignore_merges") is True,
    )


def _merges(merges: Any) -> list[Merge]:
    """Merges are written as "a b" by older versions of the library and as ["a", "b"] by newer ones."""
    if isinstance(merges, list) and set(map(type, merges)) <= {str}:
        return split_merges(merges)
    if isinstance(merges, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in merges):
        pairs = list(map(tuple, merges))
        if all(isinstance(left, str) and isinstance(right, str) for left, right in pairs):
            return pairs
    raise TokenizerError("the merges of tokenizer.json are no list of pairs of pieces; get the file again")


def _unknown(model: Node, vocabulary: Vocabulary) -> int | None:
    """The id for characters that no piece covers."""
    text, token_id = model.get("unk_token"), model.get("unk_id")
    if isinstance(text, str):
        return vocabulary.ids.get(text)
    return token_id if isinstance(token_id, int) and 0 <= token_id < len(vocabulary.pieces) else None


def _nodes(node: Any) -> Iterator[Node]:
    """The steps of a normalizer, pre-tokenizer, decoder or post-processor, sequences unfolded."""
    if not isinstance(node, dict):
        return
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        for inner in node.get(key) or () if node.get("type") == "Sequence" else ():
            yield from _nodes(inner)
    if node.get("type") != "Sequence":
        yield node


def _is_byte_level(root: Node) -> bool:
    """Whether pieces are written in stand-ins for bytes; raises TokenizerError when they are of no known writing."""
    steps = [*_nodes(root.get("pre_tokenizer")), *_nodes(root.get("decoder"))]
    if any(step.get("type") == "ByteLevel" for step in steps):
        return True
    if any(step.get("type") == "Metaspace" or step.get("content") == " " for step in steps):
        return False
    raise TokenizerError("tokenizer.json has neither a byte-level nor a SentencePiece decoder; no other is supported")


def _strips_space(root: Node) -> bool:
    """Whether the decoder drops the first space of a text."""
    for step in _nodes(root.get("decoder")):
        if step.get("type") == "Strip" and step.get("content") == " " and step.get("start"):
            return True
        if step.get("type") == "Metaspace":
            return _scheme(step) != "never"
    return False


def _scheme(metaspace: Node) -> str:
    legacy = "never" if metaspace.get("add_prefix_space") is False else "always"
    return str(metaspace.get("prepend_scheme") or legacy)


def _take_prefix(pipeline: dict[str, Any]) -> PrefixRule:
    """Takes the step that puts a space before a text out of ``pipeline`` and returns it as a rule of our own.

    The library cannot encode a piece that continues a text; with the rule in our hands we can.
    """
    normalizer = pipeline["normalizer"]
    for step in _nodes(normalizer):
        if step.get("type") == "Prepend":
            rest = [s for s in _nodes(normalizer) if s is not step]
            pipeline["normalizer"] = {"type": "Sequence", "normalizers": rest}
            return PrefixRule("every", prefix=str(step.get("prepend") or WORD_BOUNDARY))
    # Later steps see words, not texts: only the first one's space is a matter of the whole text.
    first = next(_nodes(pipeline["pre_tokenizer"]), {})
    if first.get("type") == "Metaspace":
        scheme = _scheme(first)
        first.pop("add_prefix_space", None)
        first["prepend_scheme"] = "never"
        mark = str(first.get("replacement") or WORD_BOUNDARY)
        if scheme != "never":
            return PrefixRule("start" if scheme == "first" else "every", unless_space=True, prefix=mark)
    elif first.get("type") == "ByteLevel" and first.get("add_prefix_space") is not False:
        first["add_prefix_space"] = False
        return PrefixRule("every", unless_space=True)
    return PrefixRule()


def _post_processor_bos(processor: Any) -> list[str]:
    """The special tokens that the post-processor puts before a text."""
    found = []
    for step in _nodes(processor):
        for entry in step.get("single") or () if step.get("type") == "TemplateProcessing" else ():
            if not isinstance(entry, dict) or not isinstance(entry.get("SpecialToken"), dict):
                break
            found.append(str(entry["SpecialToken"].get("id")))
    return found
