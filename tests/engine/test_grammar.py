"""Grammars and processors: every text has the form that was asked for, and is the same with every drafter and in a
batch."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.cli.form import FormOptions
from draftsmith.engine import LLM, Engine, EngineLimits, LoadedModel
from draftsmith.engine.grammar import MAX_GRAMMAR, GrammarCompiler
from draftsmith.errors import UsageError
from draftsmith.speculate import Drafter, MixedDrafter, ModelDrafter, PromptLookupDrafter, SuffixDrafter
from draftsmith.types import Completion, Constraint, Grammar, GrammarKind, Request, SamplingParams, VerificationRule
from tests.support.fakes import EOS, VOCAB_SIZE, FakeModel, byte_tokenizer
from tests.support.shared_fakes import SharedFakeModel

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "maxItems": 2},
        "kind": {"enum": ["abc", "abd"]},
    },
    "required": ["name", "ages", "kind"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA))
WORDS = Grammar("regex", r"[a-d]{3}(-[a-h]{2,4}){1,3}\.")
NESTED = Grammar("grammar", 'start: "(" start ")" | "a" | "b"')
GBNF = Grammar("grammar", 'root ::= "x" [a-h]+ "y"')
SEEDED = SamplingParams(seed=5, max_new_tokens=90, temperature=1.3, top_k=0, top_p=0.99, repetition_penalty=1.1)
GREEDY = SamplingParams(greedy=True, max_new_tokens=90, frequency_penalty=0.4)
PROMPTS = ("abc abd abc", "(((", 'abc {"name": "')


def drafters() -> dict[str, Drafter | None]:
    def model(seed: int) -> ModelDrafter:
        return ModelDrafter(FakeModel(seed), target_vocab_size=VOCAB_SIZE)

    return {
        "none": None,
        "lookup": PromptLookupDrafter(),
        "suffix": SuffixDrafter(),
        "itself": model(0),
        "other": model(9),
        "mixed": MixedDrafter(PromptLookupDrafter(4, 3), model(0)),
    }


def llm(drafter: Drafter | None, rule: VerificationRule = "coupled", model: FakeModel | None = None) -> LLM:
    k: Any = {"num_draft_tokens": 4} if drafter is not None else {}
    return LLM(LoadedModel("fake", model or FakeModel(0), byte_tokenizer()), drafter, rule=rule, **k)


def written(reply: Completion) -> tuple[object, ...]:
    return reply.token_ids, reply.text, reply.finish_reason, reply.logprobs


@pytest.mark.parametrize("grammar", [JSON, WORDS, NESTED, GBNF], ids=["json", "regex", "lark", "gbnf"])
@pytest.mark.parametrize("params", [SEEDED, GREEDY], ids=["seeded", "greedy"])
def test_the_same_text_with_every_drafter_alone_and_together(grammar: Grammar, params: SamplingParams) -> None:
    params = dataclasses.replace(params, grammar=grammar, logprobs=2)
    plain = [llm(None).generate(prompt, params)[0] for prompt in PROMPTS]
    for name, drafter in drafters().items():
        engine = llm(drafter)
        for prompt, expected in zip(PROMPTS, plain, strict=True):
            assert written(engine.generate(prompt, params)[0]) == written(expected), (name, prompt)
        together = llm(drafter, model=SharedFakeModel(0)).generate(PROMPTS, params)
        assert list(map(written, together)) == list(map(written, plain)), name


def test_what_must_follow_is_drafted_in_a_batch_too_whose_texts_rest() -> None:
    """While there is a choice nothing can be copied, and the texts are asked more rarely; then all is forced."""
    forced = "-this text has no choice at all, nor any end so far"
    params = dataclasses.replace(GREEDY, grammar=Grammar("regex", "[a-h]{17}" + forced))
    engine = LLM(LoadedModel("fake", SharedFakeModel(0), byte_tokenizer()), PromptLookupDrafter(9, 9))
    for reply in engine.generate(["zzz", "yyy", "xxx", "www"], params):
        assert reply.speculation is not None
        assert reply.text.endswith(forced)
        assert reply.speculation.num_accepted_tokens >= len(forced) - len(forced) // 16 - 1


@pytest.mark.parametrize("name", drafters())
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_every_reply_has_the_form(name: str, rule: VerificationRule) -> None:
    engine = llm(drafters()[name], rule)
    for seed in range(6):
        params = dataclasses.replace(SEEDED, seed=seed, max_new_tokens=200)
        reply = engine.generate("abc", dataclasses.replace(params, grammar=JSON))[0]
        assert reply.finish_reason == "stop"
        assert reply.token_ids[-1] == EOS
        value = json.loads(reply.text)
        assert list(value) == ["name", "ages", "kind"]
        assert len(value["name"]) <= 6
        assert all(0 <= age <= 999 for age in value["ages"])
        assert value["kind"] in ("abc", "abd")
        assert reply.text == json.dumps(value, ensure_ascii=False)
        text = engine.generate("abc", dataclasses.replace(params, grammar=WORDS))[0].text
        assert re.fullmatch(WORDS.source, text)


def test_what_must_follow_is_drafted_for_nothing_and_always_accepted() -> None:
    grammar = Grammar("regex", "this text has no choice at all(a|b)and here neither")
    reply = llm(PromptLookupDrafter()).generate("zzz", dataclasses.replace(GREEDY, grammar=grammar))[0]
    stats = reply.speculation
    assert stats is not None
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 40
    assert stats.num_drafts <= 5
    assert len(reply.token_ids) == len(grammar.source) - len("(|b)") + 1


def test_a_draft_stops_where_the_grammar_forbids_it() -> None:
    """Lookup would go on with what followed in the prompt; none of it may."""
    grammar = Grammar("regex", "(abcd)+x[ef]")
    reply = llm(PromptLookupDrafter(2, 1)).generate("abcdefghabcdzzzz", dataclasses.replace(GREEDY, grammar=grammar))[0]
    assert reply.speculation is not None
    assert reply.speculation.acceptance_rate > 0.8


def test_a_preempted_text_goes_on_where_it_was() -> None:
    model = SharedFakeModel(0)
    engine = Engine(
        model, eos_ids=[EOS], drafter=PromptLookupDrafter(), num_draft_tokens=4, limits=EngineLimits(kv_bytes=600)
    )
    compiler = GrammarCompiler(byte_tokenizer())
    params = dataclasses.replace(SEEDED, grammar=Grammar("regex", "[a-h]{300}!"), max_new_tokens=301)
    handles = []
    for seed in range(4):
        request = Request(
            prompt_ids=tuple(b"abcabc%d" % seed),
            sampling=dataclasses.replace(params, seed=seed),
            constraint=compiler.compile(params.grammar or JSON),
        )
        handles.append(engine.submit(request))
    while not engine.idle:
        engine.step()
    assert engine.stats.num_preemptions > 0
    for seed, handle in enumerate(handles):
        text = bytes(i for one in handle.take() for i in one.token_ids if i < EOS)
        alone = llm(None).generate(b"abcabc%d" % seed, dataclasses.replace(params, seed=seed))[0]
        assert text.decode() == alone.text


def test_control_tokens_are_no_text() -> None:
    matcher = compiled("regex", "(?s:.)*").start()
    mask = matcher.allowed(VOCAB_SIZE + 5)
    assert mask is not None
    assert np.flatnonzero(~mask[: EOS + 1]).size < 80  # bytes that never begin a character
    assert mask[EOS]
    assert not mask[EOS + 1 :].any()


def test_pushing_and_popping_is_nothing() -> None:
    matcher = compiled("json_schema", JSON.source).start()
    text = [*b'{"name": "ab", "ages": [1], "kind": "abc"}', EOS, 97, 98]
    masks = []
    for token_id in text:
        masks.append(matcher.allowed(VOCAB_SIZE))
        matcher.push(token_id)
    assert masks[-1] is None
    for token_id, mask in reversed(list(zip(text, masks, strict=True))):
        matcher.pop()
        again = matcher.allowed(VOCAB_SIZE)
        assert (mask is None) == (again is None)
        assert mask is None or again is None or np.array_equal(mask, again), token_id


def compiled(kind: GrammarKind, source: str) -> Constraint:
    return GrammarCompiler(byte_tokenizer()).compile(Grammar(kind, source))


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "(a", "unclosed"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "a" * (MAX_GRAMMAR + 1), "bytes"),
        ("grammar", "start: ", "empty"),
        ("grammar", 'root ::= "x', ""),
        ("json_schema", "{", "Expecting"),
        ("json_schema", "[]", "neither an object"),
        ("json_schema", '{"type": "robot"}', "robot"),
        ("json_schema", '{"not": {"type": "string"}}', "not"),
        ("json_schema", '{"$ref": "http://example.org/x"}', "not fetch"),
        ("json_schema", '{"pattern": "(?=a)", "type": "string"}', "look-around"),
        ("json_schema", '{"items": ' * 70 + "{}" + "}" * 70, "nested"),
        ("json_schema", "[" * 30_000, ""),
    ],
)
def test_what_is_no_grammar_is_told_in_one_sentence(kind: GrammarKind, source: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        compiled(kind, source)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("source", ["(a{1000}){1000}", "(x+x+)+y", "(.{0,1000}b){0,1000}c", "((a{30}){30}){30}"])
def test_mean_expressions_take_no_longer(source: str) -> None:
    began = time.perf_counter()
    matcher = compiled("regex", source).start()
    for token_id in matcher.forced()[:20]:
        matcher.allowed(VOCAB_SIZE)
        matcher.push(token_id)
    assert time.perf_counter() - began < 5  # hundreds of times what it takes


def test_options_that_contradict_a_grammar() -> None:
    with pytest.raises(UsageError, match="ignore_eos"):
        SamplingParams(grammar=JSON, ignore_eos=True)
    with pytest.raises(UsageError, match="forbids every token"):
        llm(None).generate("a", SamplingParams(grammar=Grammar("regex", "b"), logit_bias={98: -float("inf")}))


class Calls:
    """Forbids the letter that stands three places before, and counts how often it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, token_ids: Sequence[int], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.count += 1
        assert scores.shape == (VOCAB_SIZE,)
        scores[token_ids[-3]] = -np.inf
        return scores


@pytest.mark.parametrize("params", [SEEDED, GREEDY], ids=["seeded", "greedy"])
def test_processors_act_at_every_position_of_a_draft(params: SamplingParams) -> None:
    calls = Calls()
    params = dataclasses.replace(params, logits_processors=(calls,))
    plain = llm(None).generate("abcabcabc", params)[0]
    assert calls.count == len(plain.token_ids)
    assert all(a != b for a, b in zip(plain.token_ids, plain.token_ids[3:], strict=False))
    assert (
        plain.token_ids
        != llm(None).generate("abcabcabc", dataclasses.replace(params, logits_processors=()))[0].token_ids
    )
    for name, drafter in drafters().items():
        assert written(llm(drafter).generate("abcabcabc", params)[0]) == written(plain), name


def test_the_command_lines_forms(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(JSON.source, encoding="utf-8")
    assert FormOptions(json_schema=schema).for_llm() == JSON
    assert FormOptions(regex="a+").for_llm() == Grammar("regex", "a+")
    assert FormOptions().for_llm() is None
    with pytest.raises(UsageError, match="--json-schema and --regex contradict"):
        FormOptions(json_schema=schema, regex="a").for_llm()
    with pytest.raises(UsageError, match="cannot be read"):
        FormOptions(grammar=tmp_path / "missing").for_llm()
