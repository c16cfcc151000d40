"""certify: a correct pair passes, every planted fault is found, and false alarms are rarer than promised.

The faults are planted where they would be made: in the verification, in the drafter, in the generator.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LLM, LoadedModel
from draftsmith.errors import UsageError
from draftsmith.measure.certify import Certificate, CertifyPlan, certify
from draftsmith.measure.pair import Pair, load_pair
from draftsmith.measure.prompts import PromptItem
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.sampling import probability_of, residual
from draftsmith.speculate import DraftSession, ModelDrafter, WantsMore
from draftsmith.types import Distribution, Draft, Request, SamplingParams, Verdict, VerificationRule
from tests.support.fakes import LETTERS, FakeModel, byte_tokenizer

VERIFY = importlib.import_module("draftsmith.speculate.verify")  # the module: the package has the function's name
ITEMS = tuple(PromptItem(str(i), "toy", (text,)) for i, text in enumerate(("abc", "gh gh", "dd")))
PLAN = CertifyPlan(
    sampling=SamplingParams(max_new_tokens=24, temperature=0.8, top_p=1.0, top_k=10, seed=0),
    samples=200,
    sample_tokens=6,
    sample_prompts=2,
)


class Toy(FakeModel):
    """The fake model with a memory for its rows, and letters that are mixed with another model's: a draft of it.

    ``bias`` is added to the logit of one letter: a generator that is not quite the target.
    """

    def __init__(self, mix: float = 0.0, bias: float = 0.0) -> None:
        super().__init__(seed=1)
        self._stranger = FakeModel(seed=2) if mix else None
        self._mix, self._bias = mix, bias
        self._rows: dict[tuple[int, ...], np.ndarray[tuple[int], np.dtype[np.float32]]] = {}

    def _row(self, ids: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        key = tuple(ids[-2:])
        if key not in self._rows:
            row = super()._row(ids)
            if self._stranger is not None:
                row = ((1 - self._mix) * row + self._mix * self._stranger._row(ids)).astype(np.float32)
            row[LETTERS[3]] += self._bias
            self._rows[key] = row
        return self._rows[key]


SMALLEST_BIAS = 0.5  # of one letter's logit: the smallest that 2000 tokens show every time; 0.4 is found 6 times of 8
TARGET, DRAFT = Toy(), Toy(mix=0.5)


def loaded(model: FakeModel, name: str) -> LoadedModel:
    return LoadedModel(name, model, byte_tokenizer())


def toy_pair(rule: VerificationRule, k: int = 3) -> Pair:
    return load_pair(loaded(TARGET, "target"), loaded(DRAFT, "draft"), num_draft_tokens=k, rule=rule)


@pytest.mark.parametrize(("rule", "verdict"), [("coupled", "identical"), ("rejection", "identical in distribution")])
def test_a_correct_pair_passes(rule: VerificationRule, verdict: str) -> None:
    certificate = certify(toy_pair(rule), ITEMS, PLAN)
    assert certificate.differences == ()
    assert certificate.verdict == verdict
    assert certificate.distribution_drafts > 100
    assert certificate.greedy.holds
    assert certificate.sampled.holds == (rule == "coupled")
    assert certificate.distribution.detectable < 0.2


def test_prompt_lookup_passes() -> None:
    pair = load_pair(loaded(TARGET, "target"), "lookup", num_draft_tokens=3)
    assert certify(pair, ITEMS, PLAN).verdict == "identical"


def accept_more(by: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def acceptance_probability(token_id: int, p: Distribution, q: Distribution | None) -> float:
        chance = probability_of(p, token_id) / (1.0 if q is None else probability_of(q, token_id))
        return min(1.0, chance + by)

    monkeypatch.setattr(VERIFY, "acceptance_probability", acceptance_probability)


def test_a_verifier_that_accepts_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_more(0.3, monkeypatch)
    certificate = certify(toy_pair("rejection"), ITEMS, PLAN)
    assert certificate.verdict == "differs"
    assert not certificate.distribution.same
    assert certificate.sampled.replies  # sampled texts may differ under this rule: that alone is no fault


def test_a_coupled_verifier_that_accepts_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps a draft token now and then although the target drew another one."""

    def lenient(token_id: int, p: Distribution, q: object, noise: object, position: int) -> int:
        del q
        drawn: int = noise.sample(p, position)  # type: ignore[attr-defined]
        return token_id if position % 7 == 0 and probability_of(p, token_id) > 0 else drawn

    monkeypatch.setitem(VERIFY._JUDGES, "coupled", lenient)
    certificate = certify(toy_pair("coupled"), ITEMS, PLAN)
    assert certificate.verdict == "differs"
    assert not certificate.sampled.holds
    assert "seeded replies differ, the first at token" in " ".join(certificate.differences)


def test_a_swapped_residual_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(token_id: int, p: Distribution, q: Distribution | None) -> Distribution:
        del token_id
        return p if q is None else residual(q, p)

    monkeypatch.setattr(VERIFY, "replacement", swapped)
    assert certify(toy_pair("rejection"), ITEMS, PLAN).verdict == "differs"


def test_a_residual_that_is_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgotten(token_id: int, p: Distribution, q: Distribution | None) -> Distribution:
        del token_id, q
        return p

    monkeypatch.setattr(VERIFY, "replacement", forgotten)
    assert certify(toy_pair("rejection"), ITEMS, PLAN).verdict == "differs"


class ShiftedSession:
    """Hands in other ids than were drawn: 'a' for 'b' and so on, with the distributions of those that were drawn."""

    def __init__(self, inner: DraftSession) -> None:
        self._inner = inner

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        letters = LETTERS.tolist()
        draft = self._inner.draft(token_ids, max_tokens, wants_more)
        others = [letters[(letters.index(i) + 1) % len(letters)] if i in letters else i for i in draft.token_ids]
        return replace(draft, token_ids=tuple(others))

    def commit(self, verdict: Verdict) -> None:
        self._inner.commit(replace(verdict, token_ids=verdict.token_ids[:1], num_accepted=0))

    def read(self, token_ids: Sequence[int]) -> None:
        self._inner.read(token_ids)

    def restart(self, request: Request) -> None:
        self._inner.restart(request)


class ShiftedDrafter:
    name = "shifted"

    def start(self, request: Request, rule: VerificationRule) -> ShiftedSession:
        return ShiftedSession(ModelDrafter(DRAFT, target_vocab_size=DRAFT.vocab_size).start(request, rule))


def test_a_draft_with_shifted_ids_is_found_where_it_does_harm() -> None:
    """Coupled verification shrugs it off (the text is the target's own whatever is drafted), rejection cannot."""
    pair = load_pair(loaded(TARGET, "target"), ShiftedDrafter(), num_draft_tokens=3, rule="rejection")
    assert certify(pair, ITEMS, PLAN).verdict == "differs"
    pair = load_pair(loaded(TARGET, "target"), ShiftedDrafter(), num_draft_tokens=3, rule="coupled")
    certificate = certify(pair, ITEMS, PLAN)
    assert certificate.verdict == "identical"
    assert certificate.sampled.num_accepted_tokens < 0.4 * certificate.sampled.num_draft_tokens


def biased(bias: float, seed: int = 0, samples: int = 200) -> Certificate:
    """One letter's logit is raised by ``bias`` in the speculative generator."""
    pair = toy_pair("rejection")
    generator = LLM(loaded(Toy(bias=bias), "biased"), loaded(DRAFT, "draft"), num_draft_tokens=3, rule="rejection")
    plan = replace(PLAN, sampling=replace(PLAN.sampling, seed=1000 * seed), samples=samples)
    return certify(replace(pair, speculative=generator), ITEMS, plan)


def test_a_biased_generator_is_found() -> None:
    assert all(not biased(SMALLEST_BIAS, seed).distribution.same for seed in range(3))


def test_greedy_texts_that_differ_are_told_with_the_margin() -> None:
    certificate = biased(3.0)
    assert certificate.verdict == "differs"
    where = certificate.greedy.first_divergence
    assert where is not None
    assert where.plain_token != where.speculative_token
    assert where.margin > 0
    assert certificate.greedy.largest_margin >= where.margin
    assert 0 < certificate.greedy.divergence_rate <= 1
    assert f"{where.margin:.3g} apart" in certificate.differences[0]


class TooSure(Toy):
    """Never writes anything but the likeliest letters: what a wrong top-k would do."""

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        return [np.where(rows >= np.sort(rows)[:, -3:-2], rows, rows - 50) for rows in super().forward(runs)]


def test_a_cut_distribution_is_found_on_either_side() -> None:
    pair = toy_pair("rejection")
    cut = LLM(loaded(TooSure(), "cut"), "none")
    certificate = certify(replace(pair, plain=cut), ITEMS, PLAN)
    assert any(name.startswith("plain") for name in certificate.distribution.failed)


def test_nothing_drafted_is_nothing_tested() -> None:
    pair = toy_pair("coupled")
    with pytest.raises(UsageError, match="nothing to certify"):
        certify(replace(pair, speculative=pair.plain), ITEMS, PLAN)


@pytest.mark.parametrize(
    "wrong", [{"samples": 5}, {"seeds": 0}, {"error_rate": 0.5}, {"sampling": SamplingParams(greedy=True)}]
)
def test_plans_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"must be|give a temperature"):
        CertifyPlan(**wrong)  # type: ignore[arg-type]  # the wrong type of value is never the point here


@pytest.mark.slow
def test_false_alarms_are_rare() -> None:
    """300 seeded runs of a correct pair: at most 1 % may fail; the error rate of each is 0.1 %."""
    pair = toy_pair("rejection")
    small = replace(PLAN, samples=30, sample_tokens=4)
    p_values, alarms = [], 0
    for run in range(300):
        plan = replace(small, sampling=replace(PLAN.sampling, seed=10_000 * run, max_new_tokens=3))
        certificate = certify(pair, ITEMS[:1], plan)
        alarms += certificate.verdict == "differs"
        p_values += list(certificate.distribution.p_values.values())
    assert alarms <= 3
    for level in (0.01, 0.1):  # p-values are what they say, so the error rate may be chosen
        assert np.mean(np.array(p_values) <= level) <= level + 3 * np.sqrt(level * (1 - level) / 300)
