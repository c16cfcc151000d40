"""Building encoders of the ``tokenizers`` library from vocabularies, merges and scores.

The encoders know ordinary pieces only. Special tokens are kept out of them, together with every merge that would make
one, so that no text can ever become a special token by accident.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from draftsmith.errors import TokenizerError
from draftsmith.text.vocabulary import TokenType, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Encoder
    from tokenizers import models

__all__ = ["bpe_model", "library_errors", "merges_from_scores", "ordinary_pieces", "unigram_model"]

Merge = tuple[str, str]


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
    pieces = {piece: token_id for token_id, piece in enumerate(vocabulary.pieces) if piece}
    for token_id, kind in vocabulary.types.items():
        piece = vocabulary.pieces[token_id]
        if kind is not TokenType.BYTE and token_id not in keep and pieces.get(piece) == token_id:
            del pieces[piece]
    return pieces


def bpe_model(
    vocabulary: Vocabulary,
    merges: Iterable[Merge],
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
    allowed = [
        pair for pair in merges if pair[0] + pair[1] not in barred and pair[0] not in barred and pair[1] not in barred
    ]
    with library_errors("the list of merges"):
        return models.BPE(
            pieces,
            allowed,
            unk_token=unk if unk_id is not None else None,
            fuse_unk=fuse_unk,
            byte_fallback=byte_fallback,
            ignore_merges=ignore_merges,
        )


def merges_from_scores(vocabulary: Vocabulary, scores: Sequence[float]) -> list[Merge]:
    """The merges that a SentencePiece BPE vocabulary implies: every cut of a piece into two others, best score first.

    SentencePiece joins whichever neighbours make the piece with the best score, and takes the leftmost of equals.
    """
    normal = {
        piece: token_id
        for token_id, piece in enumerate(vocabulary.pieces)
        if piece and token_id not in vocabulary.types
    }
    ranked = sorted((piece for piece in normal if len(piece) > 1), key=lambda piece: (-scores[normal[piece]], piece))
    # Of several cuts of one piece the longer left part comes first: where they overlap, it begins further to the left.
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in normal and piece[cut:] in normal
    ]


def unigram_model(vocabulary: Vocabulary, scores: Sequence[float], unk_id: int | None) -> models.Unigram:
    """A unigram model. Pieces that no text may become are renamed to hold a space, which texts have no more by then."""
    from tokenizers import models

    has_bytes = TokenType.BYTE in vocabulary.types.values()
    floor = 8 * min(scores, default=0.0) - 100.0
    rows: list[tuple[str, float]] = []
    for token_id, piece in enumerate(vocabulary.pieces):
        kind = vocabulary.type_of(token_id)
        if kind is TokenType.NORMAL and piece:
            rows.append((piece, scores[token_id]))
        elif kind is TokenType.BYTE:
            rows.append((piece, floor))  # found by name when falling back, too dear to be read from text
        else:
            rows.append((f" {token_id}", 0.0))
    with library_errors("the unigram vocabulary"):
        return models.Unigram(rows, unk_id, has_bytes)


def encoder_of(model: models.BPE | models.Unigram, settings: Mapping[str, object]) -> Encoder:
    """An encoder with the given ``normalizer`` and ``pre_tokenizer`` (in the form of tokenizer.json)."""
    import json

    from tokenizers import Tokenizer as Encoder

    shell = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": settings.get("normalizer"),
        "pre_tokenizer": settings.get("pre_tokenizer"),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    with library_errors("the normalizer or pre-tokenizer"):
        encoder = Encoder.from_str(json.dumps(shell))
        encoder.model = model
        return encoder
