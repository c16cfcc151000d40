"""Whether a text keeps its bytes on the way from a target's tokens to a draft's, as it grows and retreats.

    python -m benchmarks.vocabularies --target TOKENIZER --draft TOKENIZER [--megabytes 10] TEXTS...

A tokenizer is a model's folder, a tokenizer.json, a GGUF file or a SentencePiece model; both directions are tried.
TEXTS are files, or folders of them (.gz is unpacked, .jsonl gives its strings); they are cut into documents of about
4 kB, spread evenly over all files. The target's tokens of a document arrive 1 to 40 at a time, and now and then some
are taken back, as rejected drafts are. After every step the draft's tokens must spell the bytes of the target's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import add_record_option, report, run_script, table
from draftsmith.checkpoint import open_checkpoint
from draftsmith.speculate import VocabularyMap, compare_vocabularies
from draftsmith.speculate.retokenize import ByteEncoder, Retokenizer
from draftsmith.text import Tokenizer

__all__ = ["documents", "lossless", "main"]

DOCUMENT = 4000  # characters
MOST_AT_ONCE = 40  # tokens
RETREATS = 0.1  # of the steps


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model's folder, or in a file of its own."""
    if path.is_dir():
        return Tokenizer.from_folder(path)
    if path.suffix == ".json":
        return Tokenizer.from_json(path.read_bytes())
    if path.suffix == ".gguf":
        return open_checkpoint(path).tokenizer()
    return Tokenizer.from_sentencepiece(path.read_bytes())


def texts_of(path: Path) -> Iterator[str]:
    """All text in a file, or in the files of a folder."""
    if path.is_dir():
        for inner in sorted(path.rglob("*")):
            if inner.is_file():
                yield from texts_of(inner)
        return
    data = path.read_bytes()
    if path.suffix == ".gz":
        path, data = path.with_suffix(""), gzip.decompress(data)
    text = data.decode("utf-8", "ignore")
    if path.suffix == ".jsonl":
        text = "\n\n".join(part for line in text.splitlines() if line.strip() for part in _strings(json.loads(line)))
    yield text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def documents(paths: Sequence[Path], num_bytes: int) -> list[str]:
    """About ``num_bytes`` of documents, taken evenly from all files."""
    whole = [text[i : i + DOCUMENT] for path in paths for text in texts_of(path) for i in range(0, len(text), DOCUMENT)]
    whole = [text for text in whole if text.strip()]
    available = sum(len(text.encode()) for text in whole)
    share = min(1.0, num_bytes / max(1, available))
    count = max(1, round(len(whole) * share))
    return [whole[i * len(whole) // count] for i in range(count)] if whole else []


def lossless(
    vocabularies: VocabularyMap, encoder: ByteEncoder, text: str, dice: random.Random
) -> tuple[bool, bool, int]:
    """Whether every step spelt the same bytes, whether the end is what the draft's tokenizer makes of the whole, and
    how many of the target's tokens there were."""
    target, draft = vocabularies.target, vocabularies.draft
    ids = target.encode(text, add_bos=False)
    contents = [b"" if target.is_special(i) else target.token_bytes(i) for i in ids]
    growing, length, same, got = Retokenizer(vocabularies, encoder), 0, True, list[int]()
    while length < len(ids):
        growing.extend(ids[length : length + dice.randint(1, MOST_AT_ONCE)])
        length = growing.num_read
        got = growing.draft_ids()
        found = b"".join(draft.token_bytes(i) for i in got if not draft.is_special(i))
        same = same and _stripped(draft, found) == _stripped(target, b"".join(contents[:length]))
        if dice.random() < RETREATS and length < len(ids):
            length = dice.randrange(max(0, length - MOST_AT_ONCE), length + 1)
            growing.truncate(length)
    return same, got == draft.encode(text), len(ids)


def _stripped(tokenizer: Tokenizer, data: bytes) -> bytes:
    """Without the space that some vocabularies put before a text."""
    return data.removeprefix(b" ") if tokenizer.strips_leading_space else data


def measure(vocabularies: VocabularyMap, texts: Sequence[str]) -> dict[str, Any]:
    """All documents through ``vocabularies``."""
    dice, encoder = random.Random(0), ByteEncoder(vocabularies.draft)  # noqa: S311 (a simulation)
    began = time.perf_counter()
    found = [lossless(vocabularies, encoder, text, dice) for text in texts]
    seconds = time.perf_counter() - began
    tokens = sum(count for _, _, count in found)
    target, draft = vocabularies.target, vocabularies.draft
    contents = [
        [(tokenizer.is_special(i), tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
        for tokenizer in (target, draft)
    ]
    same_ids = sum(one == other for one, other in zip(*contents, strict=False))
    return {
        "same ids": same_ids,
        "tokens in common": len(vocabularies.target_ids),
        "of a text": round(vocabularies.overlap, 3),
        "documents": len(texts),
        "not lossless": sum(not same for same, _, _ in found),
        "spelt as the whole": sum(whole for _, whole, _ in found),
        "tokens": tokens,
        "us a token": round(1e6 * seconds / max(1, tokens), 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the JSON line; exit code 1 when a byte was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", required=True, type=Path)
    parser.add_argument("--draft", required=True, type=Path)
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("texts", nargs="+", type=Path, help="files or folders of text")
    add_record_option(parser)
    options = parser.parse_args(arguments)
    texts = documents(options.texts, round(options.megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts)
    target, draft = load_tokenizer(options.target), load_tokenizer(options.draft)
    rows = []
    for one, other in ((target, draft), (draft, target)):
        names = (options.target, options.draft) if one is target else (options.draft, options.target)
        rows.append(
            {"target": names[0].name, "draft": names[1].name, **measure(compare_vocabularies(one, other), texts)}
        )
    lost = sum(row["not lossless"] for row in rows)
    result = {"bytes": size, "lossless": not lost, "rows": rows}
    shown = table(list(rows[0]), [list(row.values()) for row in rows])
    report(f"Texts between two vocabularies, {size / 1e6:.1f} MB", [shown], result, options.record)
    return int(lost > 0)


if __name__ == "__main__":
    run_script(main)
