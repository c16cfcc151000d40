"""Building encoders of the ``tokenizers`` library from vocabularies, merges and scores.

The encoders know ordinary pieces only. Special tokens are kept out of them, together with every merge that would make
one, so that no text can ever become a special token by accident.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from types import MappingProxyType
from typing import TYPE_CHECKING

from draftsmith.errors import TokenizerError
from draftsmith.text.vocabulary import TokenType, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Encoder
    from tokenizers import models

__all__ = ["bpe_model", "encoder_of", "library_errors", "merges_from_scores", "split_merges", "unigram_model"]

Merge = tuple[str, str]

# A pre-tokenizer that cuts strings such as <0x0A> after their first character, so that no text is read as a byte token.
NO_BYTE_NAMES: Mapping[str, object] = MappingProxyType(
    {
        "type": "Split",
        "pattern": {"Regex": "<(?=0x[0-9A-F]{2}>)"},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
)


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns whatever the library raises, a panic of its Rust code included, into a TokenizerError about ``what``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, TokenizerError):
        raise
    except BaseException as error:  # a panic is no Exception
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(f"{what} cannot be used ({reason}); get the tokenizer's files again") from error


def ordinary_pieces(vocabulary: Vocabulary, keep: Container[int] = ()) -> dict[str, int]:
    """The ids by piece that merging may produce: normal and byte pieces, and the ids in ``keep``."""
    pieces = dict(zip(vocabulary.pieces, range(len(vocabulary.pieces)), strict=True))
    pieces.pop("", None)
    for token_id, kind in vocabulary.types.items():
        piece = vocabulary.pieces[token_id]
        if kind is not TokenType.BYTE and token_id not in keep and pieces.get(piece) == token_id:
            del pieces[piece]
    return pieces


def bpe_model(
    vocabulary: Vocabulary,
    merges: Sequence[Merge],
    *,
    unk: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> models.BPE:
    """A BPE model; merges come most important first. Merges from or to anything but normal pieces are left out."""
    from tokenizers import models

    unk_id = vocabulary.ids.get(unk) if unk is not None else None
    pieces = ordinary_pieces(vocabulary, keep=() if unk_id is None else (unk_id,))
    barred = {vocabulary.pieces[token_id] for token_id in vocabulary.types}
    barred.discard("")
    products = map("".join, merges)
    if not (barred.isdisjoint(products) and barred.isdisjoint(chain.from_iterable(merges))):
        merges = [pair for pair in merges if barred.isdisjoint((*pair, "".join(pair)))]
    with library_errors("the list of merges"):
        return models.BPE(
            pieces,
            list(merges),
            unk_token=unk if unk_id is not None else None,
            fuse_unk=fuse_unk,
            byte_fallback=byte_fallback,
            ignore_merges=ignore_merges,
        )


def split_merges(lines: Sequence[str]) -> list[Merge]:
    """Merges from lines of two pieces with a space between. Raises TokenizerError for any other line."""
    flat = " ".join(lines).split(" ")
    if set(map(str.count, lines, repeat(" "))) == {1} and all(flat):  # no piece holds a space: the quick way
        return list(zip(flat[::2], flat[1::2], strict=True))
    # The first character belongs to the left piece whatever it is.
    cuts = [line.find(" ", 1) for line in lines]
    for line, cut in zip(lines, cuts, strict=True):
        if cut < 0 or cut == len(line) - 1:
            raise TokenizerError(f"the merge {line[:40]!r} is damaged; expected two pieces with a space between")
    return [(line[:cut], line[cut + 1 :]) for line, cut in zip(lines, cuts, strict=True)]


def merges_from_scores(vocabulary: Vocabulary, scores: Sequence[float]) -> list[Merge]:
    """The merges that a SentencePiece BPE vocabulary implies: every cut of a piece into two others, best score first.

    SentencePiece joins whichever neighbours make the piece with the best score, and takes the leftmost of equals. An
    order of merges cannot say "leftmost", but the order of ids comes out the same: runs of spaces, which share one
    score in Llama's vocabulary, have their ids in the order in which leftmost joins would meet them.
    """
    normal = {
        piece: token_id
        for token_id, piece in enumerate(vocabulary.pieces)
        if piece and token_id not in vocabulary.types
    }
    ranked = sorted((i for piece, i in normal.items() if len(piece) > 1), key=lambda i: (-scores[i], i))
    merges: list[Merge] = []
    for token_id in ranked:
        piece = vocabulary.pieces[token_id]
        cuts = [
            (normal[piece[:cut]], normal[piece[cut:]])
            for cut in range(1, len(piece))
            if piece[:cut] in normal and piece[cut:] in normal
        ]
        merges += [(vocabulary.pieces[left], vocabulary.pieces[right]) for left, right in sorted(cuts)]
    return merges


def unigram_model(vocabulary: Vocabulary, scores: Sequence[float], unk_id: int | None) -> models.Unigram:
    """A unigram model. Pieces that no text may become are renamed to hold a space, which texts have no more by then."""
    from tokenizers import models

    has_bytes = TokenType.BYTE in vocabulary.types.values()
    rows: list[tuple[str, float]] = []
    for token_id, piece in enumerate(vocabulary.pieces):
        kind = vocabulary.type_of(token_id)
        if kind is TokenType.NORMAL and piece:
            rows.append((piece, scores[token_id]))
        elif kind is TokenType.BYTE:
            rows.append((piece, 0.0))  # found by name when falling back; NO_BYTE_NAMES keeps text from being it
        else:
            rows.append((f" {token_id}", 0.0))
    with library_errors("the unigram vocabulary"):
        return models.Unigram(rows, unk_id, has_bytes)


def encoder_of(model: models.BPE | models.Unigram, settings: Mapping[str, object]) -> Encoder:
    """An encoder with the given ``normalizer`` and ``pre_tokenizer`` (in the form of tokenizer.json)."""
    import json

    from tokenizers import Tokenizer as Encoder
    from tokenizers import models

    steps = [settings.get("pre_tokenizer"), dict(NO_BYTE_NAMES) if isinstance(model, models.Unigram) else None]
    shell = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": settings.get("normalizer"),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [step for step in steps if step]},
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    with library_errors("the normalizer or pre-tokenizer"):
        encoder = Encoder.from_str(json.dumps(shell))
        encoder.model = model
        return encoder
