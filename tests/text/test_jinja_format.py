"""Chat templates: text as transformers renders it, special tokens from the template alone, masks from its structure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from draftsmith.errors import TemplateError
from draftsmith.text import JinjaFormat, Tokenizer
from draftsmith.types import Message
from tests.support.made_tokenizers import SPECIAL, byte_level_json, llama_json

CONFIG = {"tokenizer_config": {"eos_token": "<|im_end|>", "bos_token": "<s>", "pad_token": "<|endoftext|>"}}
TOKENIZER = Tokenizer.from_json(byte_level_json("qwen2"), CONFIG)
LLAMA = Tokenizer.from_json(llama_json("prepend"), {"tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>"}})

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TRIMMED = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = 'You are kind.' %}
    {%- set rest = messages %}
{%- endif %}
{{- '<|im_start|>system\\n' ~ system ~ '<|im_end|>\\n' }}
{%- for message in rest %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content.strip() + eos_token }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>user\\n' + message.content | trim + '<|im_end|>\\n' }}
    {%- endif %}
    {%- if tools %}{{ tools | tojson }}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
FORGETFUL = (  # drops what the model thought as soon as another message follows
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT = [
    Message("user", "Hi <b> there"),
    Message("assistant", "Hello! 🎉"),
    Message("user", "Bye"),
    Message("assistant", "x"),
]


def rendered_by_transformers(tokenizer: Tokenizer, template: str, messages: list[Message], generate: bool) -> str:
    chat = [[{"role": message.role, "content": message.content} for message in messages]]
    special: dict[str, Any] = {"bos_token": tokenizer.bos_id or 0, "eos_token": tokenizer.eos_ids[0]}
    special = {name: tokenizer.text_of(token_id) for name, token_id in special.items()}
    result: Any = render_jinja_template(chat, chat_template=template, add_generation_prompt=generate, **special)
    texts = result[0]
    return str(texts[0])


@pytest.mark.parametrize("template", [CHATML, TRIMMED, BRACKETS, FORGETFUL])
@pytest.mark.parametrize("generate", [False, True])
def test_the_text_is_that_of_transformers(template: str, generate: bool) -> None:
    for messages in (CHAT[:1], CHAT[:3], [Message("user", "  </s><|im_end|> <|\n"), CHAT[1], Message("user", "|>")]):
        expected = rendered_by_transformers(TOKENIZER, template, messages, generate)
        if template == FORGETFUL and not generate and len(messages) > 1:
            continue
        encoded = JinjaFormat(TOKENIZER, template).encode(messages, add_generation_prompt=generate)
        assert encoded.text == expected


@pytest.mark.parametrize(("tokenizer", "template"), [(TOKENIZER, CHATML), (TOKENIZER, TRIMMED), (LLAMA, BRACKETS)])
def test_ids_are_those_of_the_whole_text(tokenizer: Tokenizer, template: str) -> None:
    encoded = JinjaFormat(tokenizer, template).encode(CHAT, add_generation_prompt=False)
    assert list(encoded.token_ids) == tokenizer.encode(encoded.text, add_bos=False, parse_special=True)


@pytest.mark.parametrize(
    ("tokenizer", "template", "replies"),
    [
        (TOKENIZER, CHATML, ["Hello! 🎉<|im_end|>", "x<|im_end|>"]),
        (TOKENIZER, TRIMMED, ["Hello! 🎉<|im_end|>", "x<|im_end|>"]),
        (LLAMA, BRACKETS, [" Hello! 🎉 </s>", " x </s>"]),
    ],
)
def test_the_mask_is_on_replies_and_their_eos_only(tokenizer: Tokenizer, template: str, replies: list[str]) -> None:
    encoded = JinjaFormat(tokenizer, template).encode(CHAT, add_generation_prompt=False)
    spans: list[bytes] = []
    previous = False
    for token_id, is_reply in zip(encoded.token_ids, encoded.loss_mask, strict=True):
        if is_reply:
            spans = spans if previous else [*spans, b""]
            spans[-1] += tokenizer.token_bytes(token_id)
        previous = is_reply
    assert [span.decode() for span in spans] == replies


@given(contents=st.lists(st.text(st.sampled_from("<|im_endstar>/x \n"), max_size=24), min_size=1, max_size=5))
def test_special_tokens_come_from_the_template_alone(contents: list[str]) -> None:
    messages = [Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(contents)]
    innocent = [Message(message.role, "x") for message in messages]
    for template in (CHATML, "{% for m in messages %}<{{ m.content }}>|im_end|><|im{{ m.content | trim }}{% endfor %}"):
        fmt = JinjaFormat(TOKENIZER, template)
        special = [
            [i for i in fmt.encode(chat, add_generation_prompt=True).token_ids if TOKENIZER.is_special(i)]
            for chat in (messages, innocent)
        ]
        assert special[0] == special[1]


@pytest.mark.parametrize("special", SPECIAL)
def test_whole_and_broken_special_strings_are_text(special: str) -> None:
    fmt = JinjaFormat(TOKENIZER, "{% for m in messages %}{{ m.content }}{% endfor %}")
    for cut in range(len(special) + 1):
        messages = [Message("user", special[:cut]), Message("user", special[cut:] + " "), Message("user", special)]
        encoded = fmt.encode(messages)
        assert not any(map(TOKENIZER.is_special, encoded.token_ids))
        assert encoded.text == special + " " + special


def test_a_template_that_rewrites_earlier_turns_has_no_mask() -> None:
    fmt = JinjaFormat(TOKENIZER, FORGETFUL)
    messages = [Message("user", "a"), Message("assistant", "<think>hm</think>b"), Message("user", "c")]
    encoded = fmt.encode(messages)
    assert "hm" not in encoded.text
    assert encoded.loss_mask == ()
    with pytest.raises(TemplateError, match="changes the text before reply 1"):
        fmt.encode([*messages, Message("assistant", "d")], add_generation_prompt=False)


def test_options_reach_the_template() -> None:
    template = "{% if enable_thinking is defined and not enable_thinking %}off{% endif %}{{ missing }}"
    assert JinjaFormat(TOKENIZER, template, options={"enable_thinking": False}).encode(CHAT[:1]).text == "off"
    assert JinjaFormat(TOKENIZER, template).encode(CHAT[:1]).text == ""


def test_a_template_may_refuse_messages() -> None:
    with pytest.raises(TemplateError, match="refuses these messages: roles must alternate"):
        JinjaFormat(TOKENIZER, TRIMMED).encode([CHAT[0], CHAT[2]])
