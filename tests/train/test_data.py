"""Rows of every kind to ids and masks; bad rows of every kind are told one by one, and then nothing is trained."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import draftsmith.train.prepare as preparing
from draftsmith.errors import UsageError
from draftsmith.text import AlpacaFormat, Tokenizer, choose_format
from draftsmith.train.audit import spans, summarise
from draftsmith.train.encode import TooLong, encode, fit
from draftsmith.train.prepare import DataPlan, prepare
from draftsmith.train.rows import BadRow, Conversation, Preference, Text, parse_prompt, parse_prompts_between, parse_row
from draftsmith.train.schema import DataFormat, DataSource
from draftsmith.types import Message
from tests.support.fakes import EOS, byte_tokenizer

CONVERSATION = (Message("user", "hi"), Message("assistant", "yo"), Message("user", "so"), Message("assistant", "ok"))
TURNS = [("user", "hi"), ("assistant", "yo"), ("user", "so"), ("assistant", "ok")]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plan(path: Path, tokenizer: Tokenizer, **changes: Any) -> DataPlan:
    values: dict[str, Any] = {
        "sources": (DataSource(path=str(path)),),
        "tokenizer": tokenizer,
        "prompt_format": choose_format(tokenizer, "alpaca"),
        "max_length": 200,
    }
    return DataPlan(**{**values, **changes})


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": role, "content": text} for role, text in TURNS]},
        {"conversations": [{"from": {"user": "human"}.get(role, "gpt"), "value": text} for role, text in TURNS]},
    ],
)
def test_conversations_in_both_spellings(row: dict[str, Any]) -> None:
    assert parse_row(row, "auto") == Conversation(CONVERSATION)


def test_alpaca_rows_and_pairs() -> None:
    user, reply = Message("user", "Add.\n\n1 2"), Message("assistant", "3")
    assert parse_row({"instruction": "Add.", "input": "1 2", "output": "3"}, "auto") == Conversation((user, reply))
    short = parse_row({"instruction": "Add.", "input": "", "output": "3", "system": "Be brief."}, "auto")
    assert short == Conversation((Message("system", "Be brief."), Message("user", "Add."), reply))
    assert parse_row({"question": "1+2?", "answer": "3"}, "auto") == Conversation((Message("user", "1+2?"), reply))
    assert parse_row({"text": "abc"}, "auto") == Text("abc")


def test_preferences_in_all_spellings() -> None:
    expected = Preference((Message("user", "q"),), "good", "bad")
    user = {"role": "user", "content": "q"}

    def said(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    assert parse_row({"prompt": "q", "chosen": "good", "rejected": "bad"}, "auto") == expected
    assert parse_row({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, "auto") == expected
    assert parse_row({"prompt": [user], "chosen": [said("good")], "rejected": [said("bad")]}, "auto") == expected
    assert parse_row({"chosen": [user, said("good")], "rejected": [user, said("bad")]}, "auto") == expected
    shares = {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"}}
    assert parse_row({**shares, "rejected": {"from": "gpt", "value": "bad"}}, "auto") == expected


def test_prompts_keep_the_users_turns_only() -> None:
    row = {"messages": [{"role": role, "content": text} for role, text in TURNS]}
    assert parse_prompt(row) == (Message("user", "hi"), Message("user", "so"))
    assert parse_prompt({"turns": ["a", "b"]}) == (Message("user", "a"), Message("user", "b"))
    assert parse_prompt({"prompt": "a"}) == (Message("user", "a"),)
    with pytest.raises(BadRow, match="has no prompt"):
        parse_prompt({"text": "a"})


def test_prompts_between_given_replies() -> None:
    said = [("system", "be"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    row = {"conversations": [{"from": role, "value": text} for role, text in said]}
    system, *turns = (Message({"human": "user", "gpt": "assistant"}.get(role, role), text) for role, text in said)
    assert parse_prompts_between(row) == [(system, *turns[:1]), (system, *turns[:3])]
    assert parse_prompts_between({"system": "be", "prompt": "a"}) == [(system, turns[0])]
    assert parse_prompts_between({"turns": ["a"]}) == [(Message("user", "a"),)]
    with pytest.raises(BadRow, match="turns without the replies between them"):
        parse_prompts_between({"turns": ["a", "b"]})
    for roles in ("uu", "au", "aua", "usu", "uasu", "uaa"):
        names = {"u": "user", "a": "assistant", "s": "system"}
        said = [(names[role], role) for role in roles]
        with pytest.raises(BadRow, match=r"^has a message from the \w+ where"):
            parse_prompts_between({"messages": [{"role": role, "content": text} for role, text in said]})


_WORDS = (
    "messages conversations instruction input output prompt completion chosen rejected text role content from value"
)
_KEYS = st.sampled_from([*_WORDS.split(), "system", "turns", "user", "assistant"])
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | _KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=12,
)


@given(st.dictionaries(_KEYS, _JSON, max_size=6), st.sampled_from(get_args(DataFormat)))
def test_whatever_a_row_holds_it_is_read_or_refused(row: dict[str, Any], kind: DataFormat) -> None:
    try:
        parsed = parse_row(row, kind)
        tokenizer = byte_tokenizer()
        documents = encode(parsed, tokenizer, AlpacaFormat(tokenizer))
    except BadRow:
        return
    assert all(document.mask.any() and not document.mask[0] for document in documents)


@given(st.dictionaries(_KEYS, _JSON, max_size=6))
def test_whatever_a_prompt_row_holds_it_is_read_or_refused(row: dict[str, Any]) -> None:
    try:
        messages = parse_prompt(row)
    except BadRow:
        return
    assert messages[-1].role == "user"
    assert all(message.content.strip() for message in messages)
    try:
        between = parse_prompts_between(row)
    except BadRow:
        return
    asked = [tuple(message for message in prompt if message.role != "assistant") for prompt in between]
    assert asked[-1] == messages
    assert all(prompt[-1].role == "user" and prompt == messages[: len(prompt)] for prompt in asked)


def test_the_mask_of_a_multi_turn_row_is_the_one_written_by_hand() -> None:
    tokenizer = byte_tokenizer()
    [document] = encode(Conversation(CONVERSATION), tokenizer, AlpacaFormat(tokenizer))
    parts = [("### Input:\nhi\n\n### Response:\n", False), ("yo", True), (EOS, True)]
    parts += [("\n\n### Input:\nso\n\n### Response:\n", False), ("ok", True), (EOS, True)]
    ids: list[int] = []
    mask: list[bool] = []
    for part, learnt in parts:
        piece = [part] if isinstance(part, int) else list(str(part).encode())
        ids += piece
        mask += [learnt] * len(piece)
    assert document.ids.tolist() == ids
    assert document.mask.tolist() == mask


def test_a_preference_learns_its_last_reply_only() -> None:
    tokenizer = byte_tokenizer()
    row = Preference(CONVERSATION[:3], "good", "bad")
    for document, reply in zip(encode(row, tokenizer, AlpacaFormat(tokenizer)), ("good", "bad"), strict=True):
        assert document.ids[document.mask].tolist() == [*reply.encode(), EOS]


def test_text_is_learnt_whole_and_cut_into_pieces() -> None:
    tokenizer = byte_tokenizer()
    documents = encode(Text("abcdefg"), tokenizer, AlpacaFormat(tokenizer))
    assert documents[0].ids.tolist() == [*b"abcdefg", EOS]
    assert documents[0].mask.tolist() == [False] + [True] * 7
    pieces = [piece.ids.tolist() for [piece] in fit(documents, 3, "cut")]
    assert pieces == [[*b"abc"], [*b"def"], [*b"g", EOS]]
    with pytest.raises(TooLong, match="has 8 tokens, but max_length is 3"):
        fit(documents, 3, "stop")


BAD_ROWS: list[tuple[str, str]] = [
    ("{", "is not JSON"),
    ("[1]", "is a JSON list; expected an object"),
    (json.dumps({"mesages": []}), "has the keys mesages; expected messages"),
    (json.dumps({"messages": []}), "messages is empty"),
    (json.dumps({"messages": "hi"}), "messages is no list"),
    (json.dumps({"messages": [{"role": "user", "content": "a"}]}), "the last message is from user"),
    (json.dumps({"messages": [{"role": "tool", "content": "a"}]}), "has the role 'tool'"),
    (json.dumps({"messages": [{"role": ["user"]}]}), "has the role ['user']"),
    (json.dumps({"messages": [{"role": "user"}]}), "messages[0] has no text"),
    (json.dumps({"messages": ["a"]}), "messages[0] is a str"),
    (json.dumps({"messages": [{"role": "assistant", "content": "a"}]}), "message 0 is from assistant"),
    (json.dumps({"instruction": "a", "output": " "}), "output or response or completion is empty"),
    (json.dumps({"instruction": "a", "output": 3}), "is a int; expected a text"),
    (json.dumps({"instruction": "a", "input": 3, "output": "b"}), "input is a int"),
    (json.dumps({"prompt": "a"}), "completion or response or answer is missing"),
    (json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}), "are the same reply"),
    (json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}), "is a preference, which only a dpo stage"),
    (json.dumps({"instruction": "a" * 300, "output": "b"}), "tokens, but max_length is 200"),
]


def test_every_kind_of_bad_row_is_told_and_nothing_is_trained(tmp_path: Path) -> None:
    good = json.dumps({"instruction": "a", "output": "b"})
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([good, *(row for row, _ in BAD_ROWS), good]), encoding="utf-8")
    told: list[str] = []
    with pytest.raises(UsageError, match=f"{len(BAD_ROWS)} of {len(BAD_ROWS) + 2} rows cannot be used"):
        prepare(plan(path, byte_tokenizer()), tmp_path / "store", told.append)
    assert len(told) == len(BAD_ROWS)
    for number, ((_, reason), line) in enumerate(zip(BAD_ROWS, told, strict=True), start=2):
        assert line.startswith(f"{path}, row {number}: ")
        assert reason in line
    assert not list((tmp_path / "store").iterdir())


def test_bad_rows_can_be_skipped_on_purpose(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"instruction": "a", "output": "b"}, {"odd": 1}])
    told: list[str] = []
    store = prepare(plan(path, byte_tokenizer(), bad_rows="skip"), tmp_path / "store", told.append)
    assert (len(store), len(told), store.report) == (1, 1, {"rows": 2, "bad_rows": 1, "too_long": 0})


def test_slow_reading_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "abc"}\n' * 5)
    now = iter(range(0, 1000, 4))  # four seconds a row
    monkeypatch.setattr(preparing, "time", SimpleNamespace(monotonic=lambda: next(now)))
    told: list[str] = []
    size = prepare(plan(path, byte_tokenizer()), tmp_path / "store", told.append).lengths[0]
    assert told == [f"reading data: 2 rows, {2 * size} tokens"]


def test_all_kinds_of_files_give_the_same_documents(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    rows = [{"instruction": f"say {i}", "output": f"{i}"} for i in range(5)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(data))
    stores = [
        prepare(plan(tmp_path / name, tokenizer), tmp_path / "store", pytest.fail)
        for name in ("a.jsonl", "b.json", "c.jsonl.gz")
    ]
    for store in stores:
        assert len(store) == 5
        for number in range(5):
            assert store.document(number).ids.tolist() == stores[0].document(number).ids.tolist()
            assert store.document(number).mask.tolist() == stores[0].document(number).mask.tolist()


def test_parquet_rows_or_a_sentence_without_pyarrow(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    try:
        import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]
        import pyarrow.parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(UsageError, match="needs pyarrow"):
            prepare(plan(path, byte_tokenizer()), tmp_path / "store", pytest.fail)
        return
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"instruction": "a", "output": "b"}] * 3), path)
    assert len(prepare(plan(path, byte_tokenizer()), tmp_path / "store", pytest.fail)) == 3


def test_a_store_is_made_once_and_again_when_the_data_change(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"instruction": "a", "output": "b"}])
    first = plan(path, byte_tokenizer())
    key = first.key()
    prepare(first, tmp_path / "store", pytest.fail)
    before = [file.stat().st_mtime_ns for file in sorted((tmp_path / "store" / key[:16]).iterdir())]
    prepare(first, tmp_path / "store", pytest.fail)
    assert before == [file.stat().st_mtime_ns for file in sorted((tmp_path / "store" / key[:16]).iterdir())]
    lines(path, [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}])
    assert first.key() != key
    assert len(prepare(first, tmp_path / "store", pytest.fail)) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, "there is no data file"),
        ("data.csv", b"a,b", "is no kind of data file"),
        ("data.json", b"{}", "holds a JSON dict; expected an array"),
        ("data.json", b"[", "is not JSON"),
        ("data.txt", b"\xff", "is not UTF-8"),
        ("data.jsonl.gz", b"no gzip", "cannot be read"),
        ("data.jsonl", b"", "no row of"),
    ],
)
def test_files_that_cannot_be_read_are_told(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        prepare(plan(tmp_path / name, byte_tokenizer()), tmp_path / "store", pytest.fail)


def test_the_audit_counts_everything_and_shows_the_masked_part(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    rows = [{"instruction": "a", "output": "bcd"}, {"odd": 1}, {"instruction": "x" * 300, "output": "y"}]
    path = lines(tmp_path / "rows.jsonl", rows)
    summary = summarise(plan(path, tokenizer, too_long="skip"), num_shown=5)
    assert (summary.rows, summary.documents, summary.learnt_tokens, summary.too_long) == (3, 1, 4, 1)
    assert [problem.number for problem in summary.problems] == [2]
    [[document]] = summary.shown
    shown = [(span.text, span.learnt) for span in spans(document, tokenizer)]
    assert shown == [("### Input:\na\n\n### Response:\n", False), ("bcd<|im_end|>", True)]
    assert summary.tokens == document.ids.size
    assert np.array_equal(document.mask, document.mask.astype(bool))
