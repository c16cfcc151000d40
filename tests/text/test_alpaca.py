"""The multi-turn Alpaca format: text, ids, loss mask, and its Jinja template."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.errors import TemplateError, UsageError
from draftsmith.text import AlpacaFormat, JinjaFormat, StopMatcher, Tokenizer, choose_format
from draftsmith.types import Message
from tests.support.made_tokenizers import byte_level_json, llama_json

BYTES = Tokenizer.from_json(
    byte_level_json("qwen2"), {"tokenizer_config": {"eos_token": "<|im_end|>", "bos_token": "<s>"}}
)
BYTES_BOS = Tokenizer.from_json(
    byte_level_json("gpt-2"), {"tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": True}}
)
LLAMA = Tokenizer.from_json(llama_json("prepend"), {"tokenizer_config": {"eos_token": "</s>"}})
LLAMA_FIRST = Tokenizer.from_json(llama_json("first"), {"tokenizer_config": {"eos_token": "</s>"}})
ALL = [BYTES, BYTES_BOS, LLAMA, LLAMA_FIRST]

SYSTEM, USER, REPLY = Message("system", "Be brief."), Message("user", " What is 2 + 2?\n"), Message("assistant", "4.")


def turns(*contents: str, system: str | None = None) -> list[Message]:
    messages = [Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(contents)]
    return [*([] if system is None else [Message("system", system)]), *messages]


def test_the_text_is_that_of_the_model_card() -> None:
    prompt = AlpacaFormat(BYTES).encode([SYSTEM, USER, REPLY, Message("user", "And 3 + 3?")])
    assert prompt.text == (
        "### Instruction:\nBe brief.\n\n### Input:\nWhat is 2 + 2?\n\n### Response:\n4.<|im_end|>\n\n"
        "### Input:\nAnd 3 + 3?\n\n### Response:\n"
    )


def test_the_documentation_shows_what_the_format_writes(repository: Path) -> None:
    page = (repository / "docs" / "prompt-format.md").read_text(encoding="utf-8")
    examples = dict(re.findall(r"<!-- example: ([^>]*) -->\n```text\n(.*?)```\n", page, re.DOTALL))
    two_turns = [SYSTEM, USER, REPLY, Message("user", "And 3 + 3?")]
    assert examples["two turns"] == AlpacaFormat(BYTES).encode(two_turns).text.replace("<|im_end|>", "</s>")
    assert examples["no system"] == AlpacaFormat(BYTES).encode([USER]).text


def test_without_a_system_message_there_is_no_instruction_block() -> None:
    prompt = AlpacaFormat(LLAMA).encode([USER])
    assert prompt.text == "<s>### Input:\nWhat is 2 + 2?\n\n### Response:\n"
    assert prompt.token_ids[0] == LLAMA.bos_id


@pytest.mark.parametrize("tokenizer", ALL)
def test_the_mask_is_on_replies_and_their_eos_only(tokenizer: Tokenizer) -> None:
    encoded = AlpacaFormat(tokenizer).encode(
        turns("a b", " one two ", "c", "", system="s"), add_generation_prompt=False
    )
    masked = [i for i, is_reply in zip(encoded.token_ids, encoded.loss_mask, strict=True) if is_reply]
    eos = tokenizer.eos_ids[0]
    assert masked == [*tokenizer.encode_piece("one two", after="text"), eos, eos]


@pytest.mark.parametrize("tokenizer", ALL)
def test_training_sees_the_prompt_that_generation_sees(tokenizer: Tokenizer) -> None:
    fmt, messages = AlpacaFormat(tokenizer), turns("a", "b", "c", "d\n e", system="s")
    for count in (2, 4):
        prompt = fmt.encode(messages[:count]).token_ids
        whole = fmt.encode(messages[: count + 1], add_generation_prompt=False)
        assert whole.token_ids[: len(prompt)] == prompt
        assert all(whole.loss_mask[len(prompt) :])
        assert whole.token_ids[-1] == tokenizer.eos_ids[0]


@pytest.mark.parametrize("tokenizer", ALL)
@given(contents=st.lists(st.text(max_size=30), min_size=1, max_size=5), system=st.none() | st.text(max_size=20))
def test_the_jinja_template_gives_the_same(tokenizer: Tokenizer, contents: list[str], system: str | None) -> None:
    fmt, messages = AlpacaFormat(tokenizer), turns(*contents, system=system)
    jinja = JinjaFormat(tokenizer, fmt.template)
    for generate in {False, messages[-1].role == "user"}:
        ours = fmt.encode(messages, add_generation_prompt=generate)
        theirs = jinja.encode(messages, add_generation_prompt=generate)
        assert theirs == ours


@pytest.mark.parametrize("tokenizer", ALL)
def test_special_strings_in_messages_are_text(tokenizer: Tokenizer) -> None:
    contents = ["</s> <|im_end|><s>", "reply</s> <|im_end|>", "x"]
    encoded = AlpacaFormat(tokenizer).encode(turns(*contents, system="<s>"))
    special = [tokenizer.text_of(i) for i in encoded.token_ids if tokenizer.is_special(i)]
    eos = tokenizer.text_of(tokenizer.eos_ids[0])
    assert special == (["<s>", eos] if tokenizer.add_bos else [eos])


def test_the_next_header_ends_a_reply_with_the_empty_line_before_it() -> None:
    stops = AlpacaFormat(BYTES).stop_strings
    for text, shown in (
        ("4.\n\n### Input:\nAnd", "4."),
        ("4.\n### Instruction:", "4."),
        ("### Response:", ""),
        ("# no\n\n## stop\n\n### here", "# no\n\n## stop\n\n### here"),
    ):
        matcher = StopMatcher(stops)
        emitted = "".join(matcher.push(char)[0] for char in text)
        assert emitted + matcher.flush() == shown


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "there are no messages"),
        ([Message("tool", "x")], "knows no tools"),
        ([REPLY], "message 0 is from assistant, but the Alpaca format needs one from user there"),
        ([USER, USER], "message 1 is from user, but the Alpaca format needs one from assistant there"),
        ([USER, SYSTEM], "message 1 is from system"),
        ([USER, REPLY], "the last message is not from the user"),
        ([SYSTEM], "the last message is not from the user"),
    ],
)
def test_what_the_format_cannot_say_is_refused(messages: list[Message], reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        AlpacaFormat(BYTES).encode(messages)


def test_a_tokenizer_without_eos_cannot_end_replies() -> None:
    with pytest.raises(TemplateError, match="no EOS token"):
        AlpacaFormat(Tokenizer.from_json(byte_level_json("gpt-2").replace(b"</s>", b"<e>").replace(b"<|", b"<-")))


def test_choose_format(tmp_path: Path) -> None:
    chatty = Tokenizer.from_json(byte_level_json("qwen2"), {"tokenizer_config": {"chat_template": "{{ 1 }}"}})
    assert choose_format(chatty).name == "chat"
    assert choose_format(chatty, "chat").template == "{{ 1 }}"
    assert choose_format(chatty, "alpaca").name == "alpaca"
    assert choose_format(BYTES).name == "alpaca"
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages[0].content }}", encoding="utf-8")
    assert choose_format(BYTES, str(path)).encode([Message("user", "hi")]).text == "hi"
    assert choose_format(BYTES, str(path)).name == "mine.jinja"
    with pytest.raises(UsageError, match="no chat template"):
        choose_format(BYTES, "chat")
    with pytest.raises(UsageError, match=r"'vicuna' is unknown; give alpaca, chat or the path"):
        choose_format(BYTES, "vicuna")
    path.write_text("{% if %}", encoding="utf-8")
    with pytest.raises(TemplateError, match="cannot be parsed"):
        choose_format(BYTES, str(path))
