"""``certify``: whether this pair on this machine writes what the target alone would write. Evidence, not belief.

Three questions: are greedy texts identical; are sampled texts with equal seeds identical (the coupled rule promises
it); are sampled texts distributed as the target's own (``distribution``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from draftsmith.engine import LLM
from draftsmith.errors import UsageError
from draftsmith.measure.conversation import Report, Turn, both_ways, tell_nobody
from draftsmith.measure.distribution import DistributionResult, Reply, TargetReference, compare_distributions
from draftsmith.measure.pair import Pair
from draftsmith.measure.prompts import PromptItem
from draftsmith.model.protocol import Model, TokenRun
from draftsmith.types import Completion, SamplingParams

__all__ = ["Certificate", "CertifyPlan", "Divergence", "Identity", "VerdictName", "certify"]

VerdictName = Literal["identical", "identical in distribution", "differs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyPlan:
    """How much to test. ``sampling``: its seed is the first of those used; the distribution test takes others.

    ``samples`` replies of ``sample_tokens`` tokens, plain and speculative, to each of ``sample_prompts`` prompts.
    ``error_rate``: of the distribution test as a whole. Raises UsageError for numbers out of range.
    """

    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(max_new_tokens=64, temperature=1.0, seed=0))
    seeds: int = 1
    samples: int = 100
    sample_tokens: int = 8
    sample_prompts: int = 4
    error_rate: float = 0.001

    def __post_init__(self) -> None:
        lowest = (("seeds", 1), ("samples", 20), ("sample_tokens", 2), ("sample_prompts", 1))
        for name, least in lowest:
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.error_rate <= 0.1:
            raise UsageError(f"error_rate is {self.error_rate}; it must be above 0 and at most 0.1")
        if self.sampling.greedy:
            raise UsageError("temperature is 0, which is greedy; give a temperature to test sampling at")


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where two texts part: token ``position`` of the reply, and how far the target's best two logits are apart there.

    A margin of nearly nothing is a tie that arithmetic decides; a large one is a fault.
    """

    id: str
    position: int
    plain_token: int | None  # None: that reply had ended
    speculative_token: int | None
    margin: float


@dataclass(frozen=True, slots=True)
class Identity:
    """Replies compared token by token, and how much was drafted in them.

    ``compared``: tokens up to where two replies part, that token included: after it they are different texts.
    ``largest_margin``: of all places where replies part, see ``Divergence``.
    """

    replies: int
    identical: int
    tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    first_divergence: Divergence | None
    compared: int = 0
    largest_margin: float = 0.0

    @property
    def divergence_rate(self) -> float:
        """How often replies part, for each token compared."""
        return (self.replies - self.identical) / self.compared if self.compared else 0.0

    @property
    def holds(self) -> bool:
        """Whether all replies were identical."""
        return self.identical == self.replies


@dataclass(frozen=True, slots=True)
class Certificate:
    """The findings. ``promised``: whether the rule promises identity with equal seeds (coupled does)."""

    greedy: Identity
    sampled: Identity
    promised: bool
    distribution: DistributionResult
    distribution_drafts: int  # draft tokens in the replies of the distribution test

    @property
    def differences(self) -> tuple[str, ...]:
        """Each fault that was found, as a clause."""
        found = []
        if not self.greedy.holds:
            found.append(_told("greedy", self.greedy))
        if self.promised and not self.sampled.holds:
            found.append(_told("seeded", self.sampled))
        if self.distribution.impossible:
            found.append(f"{self.distribution.impossible} sampled tokens have no probability under the target")
        if self.distribution.failed:
            lowest = min(self.distribution.p_values.values())
            found.append(
                f"sampled replies have another distribution (test of {', '.join(self.distribution.failed)}; "
                f"lowest p {lowest:.1e})"
            )
        return tuple(found)

    @property
    def verdict(self) -> VerdictName:
        """``differs`` when anything was found; ``identical`` when even equal seeds gave equal tokens throughout."""
        if self.differences:
            return "differs"
        return "identical" if self.sampled.holds else "identical in distribution"


def certify(pair: Pair, items: Sequence[PromptItem], plan: CertifyPlan, *, report: Report = tell_nobody) -> Certificate:
    """Put the three questions to ``pair``. Raises UsageError when no draft token was tested at all."""
    total = len(items) * (1 + plan.seeds) + min(plan.sample_prompts, len(items))
    greedy_params = SamplingParams(greedy=True, max_new_tokens=plan.sampling.max_new_tokens)
    greedy: list[tuple[PromptItem, Turn]] = []
    sampled: list[tuple[PromptItem, Turn]] = []
    first_seed = plan.sampling.seed or 0
    for done, item in enumerate(items):
        report(done, total, f"greedy {item.id}")
        greedy += [(item, turn) for turn in both_ways(pair, item, greedy_params, speculative_first=False)]
    for seed in range(plan.seeds):
        params = replace(plan.sampling, seed=first_seed + seed)
        for done, item in enumerate(items):
            report(len(items) * (1 + seed) + done, total, f"seed {first_seed + seed} {item.id}")
            sampled += [(item, turn) for turn in both_ways(pair, item, params, speculative_first=False)]
    drafted = _identity(pair, greedy), _identity(pair, sampled)
    if not greedy or not any(identity.num_draft_tokens for identity in drafted):
        raise UsageError("the drafter proposed nothing, so there is nothing to certify; give other or longer prompts")
    chosen = _most_drafted(sampled, plan.sample_prompts)
    distribution, drafts = _distribution(pair, chosen, plan, report, total)
    promised = pair.options.get("rule", "coupled") == "coupled"
    return Certificate(*drafted, promised, distribution, drafts)


def _identity(pair: Pair, turns: Sequence[tuple[PromptItem, Turn]]) -> Identity:
    different = [(item, turn) for item, turn in turns if turn.plain.token_ids != turn.speculative.token_ids]
    divergences = [_divergence(pair.target.model, item, turn) for item, turn in different]
    stats = [turn.speculative.speculation for _, turn in turns if turn.speculative.speculation is not None]
    return Identity(
        replies=len(turns),
        identical=len(turns) - len(different),
        tokens=sum(len(turn.plain.token_ids) for _, turn in turns),
        num_draft_tokens=sum(s.num_draft_tokens for s in stats),
        num_accepted_tokens=sum(s.num_accepted_tokens for s in stats),
        first_divergence=divergences[0] if divergences else None,
        compared=sum(min(_parting(turn) + 1, len(turn.plain.token_ids)) for _, turn in turns),
        largest_margin=max((divergence.margin for divergence in divergences), default=0.0),
    )


def _divergence(model: Model, item: PromptItem, turn: Turn) -> Divergence:
    plain, other = turn.plain.token_ids, turn.speculative.token_ids
    position = _parting(turn)
    [logits] = model.forward([TokenRun(model.new_cache(), [*turn.prompt_ids, *plain[:position]])])
    second, first = np.partition(logits[-1], -2)[-2:]
    return Divergence(
        item.id,
        position,
        plain[position] if position < len(plain) else None,
        other[position] if position < len(other) else None,
        float(first) - float(second),
    )


def _parting(turn: Turn) -> int:
    """The number of tokens that the two replies begin with alike."""
    plain, other = turn.plain.token_ids, turn.speculative.token_ids
    common = min(len(plain), len(other))
    return next((i for i in range(common) if plain[i] != other[i]), common)


def _most_drafted(turns: Sequence[tuple[PromptItem, Turn]], number: int) -> list[tuple[int, ...]]:
    """The prompts (first turns) whose sampled replies had the most draft tokens: there faults would show."""
    first: dict[str, Turn] = {}
    for item, turn in turns:
        first.setdefault(item.id, turn)

    def drafted(turn: Turn) -> int:
        stats = turn.speculative.speculation
        return stats.num_draft_tokens if stats is not None else 0

    return [turn.prompt_ids for turn in sorted(first.values(), key=drafted, reverse=True)[:number]]


def _distribution(
    pair: Pair, prompts: Sequence[tuple[int, ...]], plan: CertifyPlan, report: Report, total: int
) -> tuple[DistributionResult, int]:
    """Draw the replies, plain and speculative with seeds of their own, and test them."""
    params = replace(plan.sampling, max_new_tokens=plan.sample_tokens)
    seed = (plan.sampling.seed or 0) + plan.seeds
    plain: list[list[Reply]] = []
    speculative: list[list[Reply]] = []
    references = []
    drafts = 0
    for place, prompt in enumerate(prompts):
        report(total - len(prompts) + place, total, "distribution")
        first = _replies(pair.plain, prompt, params, range(seed, seed + plan.samples))
        second = _replies(pair.speculative, prompt, params, range(seed + plan.samples, seed + 2 * plan.samples))
        seed += 2 * plan.samples
        plain.append([reply.token_ids for reply in first])
        speculative.append([reply.token_ids for reply in second])
        drafts += sum(reply.speculation.num_draft_tokens for reply in second if reply.speculation is not None)
        references.append(TargetReference(pair.target.model, prompt, params))
    result = compare_distributions(
        plain, speculative, references, error_rate=plan.error_rate, seed=plan.sampling.seed or 0
    )
    return result, drafts


def _replies(llm: LLM, prompt: tuple[int, ...], params: SamplingParams, seeds: range) -> list[Completion]:
    return [llm.generate([prompt], replace(params, seed=seed))[0] for seed in seeds]


def _told(kind: str, identity: Identity) -> str:
    count = f"{identity.replies - identity.identical} of {identity.replies} {kind} replies differ"
    where = identity.first_divergence
    if where is None:
        return count
    return (
        f"{count}, the first at token {where.position} of {where.id}, where the target's best two logits are "
        f"{where.margin:.3g} apart"
    )
