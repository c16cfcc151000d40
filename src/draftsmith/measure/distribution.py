"""Whether speculative replies are distributed as plain ones, and as the target says. The draft may be unknown.

1. Two samples: frequencies of the next token at each place, and of short sequences, in plain and in speculative replies
   to the same prompts with different seeds. G-test by shuffling, exact at any sample size.
2. Bins: for every token written, the target's own distribution p at that place is computed, and u = (mass of likelier
   tokens) + U p(token) with U uniform. If the token was drawn from p, then the u are independent and uniform, whatever
   was written before (Rosenblatt 1952). Chi-square over 16 bins.
3. Mean of the same u: sensitive to a shift towards likely tokens, or away from them, spread over all places.
4. Ids: how often each token id was written, against the sum of its p over all places. The difference is a martingale;
   Freedman's inequality (1975) bounds its tails without any approximation.

A reply's first token is never drafted, so it is left out. Tests 2 to 4 are also made of the plain replies: if those
fail, the sampler is at fault and not the verification. The error rate is shared out among all (Bonferroni).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from draftsmith.measure.statistics import chi_square_tail, homogeneity_p_value, normal_tail
from draftsmith.model.protocol import Model, TokenRun
from draftsmith.sampling import TokenHistory, needs_history, probability_of, process
from draftsmith.types import Distribution, SamplingParams

__all__ = ["DistributionResult", "Reply", "TargetReference", "compare_distributions"]

Reply = tuple[int, ...]
BINS = 16
MIN_PER_BIN = 5
RARE = 5  # features that are seen less often are counted together
POWER = 0.9
FIRST = 1  # the first token that can have been drafted


@dataclass(frozen=True, slots=True)
class DistributionResult:
    """``p_values`` by test; a test fails below ``threshold`` = error rate / tests. ``impossible``: speculative tokens
    to which the target gives no probability. ``detectable``: the smallest share of tokens which, replaced by the
    target's likeliest, test 3 finds with 90 % probability.
    """

    p_values: Mapping[str, float]
    threshold: float
    impossible: int
    tokens: tuple[int, int]  # plain, speculative: tokens that were tested
    detectable: float

    @property
    def failed(self) -> tuple[str, ...]:
        """The tests that found a difference."""
        return tuple(name for name, p in self.p_values.items() if p <= self.threshold)

    @property
    def same(self) -> bool:
        """Whether no test found a difference."""
        return not self.failed and not self.impossible


class TargetReference:
    """The target's own distributions along replies to one prompt, computed once for each beginning of a reply."""

    def __init__(self, model: Model, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._model = model
        self._prompt = tuple(prompt_ids)
        self._params = params
        self._known: dict[Reply, Distribution] = {}
        self._cache = model.new_cache()
        if len(self._prompt) > 1:
            model.forward([TokenRun(self._cache, self._prompt[:-1])])

    def along(self, reply: Reply) -> list[Distribution]:
        """What each token of ``reply`` should have been drawn from."""
        if any(reply[:place] not in self._known for place in range(len(reply))):
            self._read(reply)
        return [self._known[reply[:place]] for place in range(len(reply))]

    def _read(self, reply: Reply) -> None:
        run = TokenRun(self._cache, [self._prompt[-1], *reply[:-1]], num_logits=len(reply))
        [rows] = self._model.forward([run])
        self._cache.truncate(len(self._prompt) - 1)
        history = TokenHistory(self._prompt) if needs_history(self._params) else None
        for place, token_id in enumerate(reply):
            self._known[reply[:place]] = process(rows[place], self._params, history)
            if history is not None:
                history.push(token_id)


def compare_distributions(
    plain: Sequence[Sequence[Reply]],
    speculative: Sequence[Sequence[Reply]],
    references: Sequence[TargetReference],
    *,
    error_rate: float = 0.001,
    shuffles: int = 9999,
    seed: int = 0,
) -> DistributionResult:
    """Test the replies to several prompts: plain[i], speculative[i] and references[i] belong to prompt i.

    The replies to a prompt are independent draws. If both kinds have the target's distribution, some test fails with a
    probability of at most ``error_rate``.
    """
    rng = np.random.default_rng([seed, 1])
    groups = [_features(first, second) for first, second in zip(plain, speculative, strict=True)]
    p_values = {"two samples": homogeneity_p_value(groups, shuffles, seed)}
    tested: dict[str, int] = {}
    impossible, likeliest = 0, 0.0
    for name, sides in (("speculative", speculative), ("plain", plain)):
        drawn = list(_draws(sides, references))
        places, outside, top = _places(drawn, rng.random)
        p_values[f"{name} ids"] = _id_counts(drawn)
        p_values[f"{name} bins"] = _uniform_bins(places)
        p_values[f"{name} mean"] = (
            normal_tail((places.mean() - 0.5) * math.sqrt(12 * places.size)) if places.size else 1
        )
        tested[name] = places.size
        if name == "speculative":
            impossible, likeliest = outside, top
    threshold = error_rate / len(p_values)
    return DistributionResult(
        p_values, threshold, impossible, (tested["plain"], tested["speculative"]),
        _detectable(tested["speculative"], likeliest, threshold),
    )  # fmt: skip


def _features(first: Sequence[Reply], second: Sequence[Reply]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Indicator matrices of what each reply shows: the token at each place, its first three tokens, all of it."""
    shown = [_shown(reply) for reply in (*first, *second)]
    seen = Counter(feature for features in shown for feature in features)
    index: dict[tuple[object, ...], int] = {}
    columns = [
        [index.setdefault(f if seen[f] >= RARE else (*f[:2], "rare"), len(index)) for f in features]
        for features in shown
    ]
    matrix = np.zeros((len(shown), max(1, len(index))), np.bool_)
    for row, numbers in enumerate(columns):
        matrix[row, numbers] = True
    return matrix[: len(first)], matrix[len(first) :]


def _shown(reply: Reply) -> list[tuple[object, ...]]:
    tokens: list[tuple[object, ...]] = [("token", place, reply[place]) for place in range(FIRST, len(reply))]
    return [*tokens, ("sequence", 3, reply[:3]), ("sequence", 0, reply)]


def _draws(
    sides: Sequence[Sequence[Reply]], references: Sequence[TargetReference]
) -> Iterator[tuple[int, Distribution]]:
    """Each token that can have been drafted, with what it should have been drawn from."""
    for replies, reference in zip(sides, references, strict=True):
        for reply in replies:
            yield from list(zip(reply, reference.along(reply), strict=True))[FIRST:]


def _places(
    drawn: Sequence[tuple[int, Distribution]], uniform: Callable[[], float]
) -> tuple[npt.NDArray[np.float64], int, float]:
    """The u of all tokens, how many were impossible, and the mean of the largest p. Certainties say nothing."""
    places: list[float] = []
    impossible, peaks = 0, 0.0
    for token_id, p in drawn:
        mass = probability_of(p, token_id)
        if mass == 0.0:
            impossible += 1
        elif p.token_ids.size > 1:
            likelier = (p.probs > mass) | ((p.probs == mass) & (p.token_ids < token_id))
            places.append(float(p.probs[likelier].sum() + uniform() * mass))
            peaks += float(p.probs.max())
    return np.array(places), impossible, peaks / len(places) if places else 1.0


def _id_counts(drawn: Sequence[tuple[int, Distribution]]) -> float:
    """2 exp(-s^2 / (2 (V + s / 3))) for the id whose count is off by s, with variance V, most strikingly; times ids.

    Only ids with V >= 1 are looked at: the others cannot be told from chance. What they lack, the others have too much.
    """
    if not drawn:
        return 1.0
    ids, slots = np.unique(np.concatenate([p.token_ids for _, p in drawn]), return_inverse=True)
    probs = np.concatenate([p.probs for _, p in drawn])
    excess = -np.bincount(slots, probs)
    variance = np.bincount(slots, probs * (1 - probs))
    written, counts = np.unique([token_id for token_id, _ in drawn], return_counts=True)
    places = ids.searchsorted(written)
    known = (places < ids.size) & (ids[np.minimum(places, ids.size - 1)] == written)
    excess[places[known]] += counts[known]
    seen = variance >= 1
    if not seen.any():
        return 1.0
    off = np.abs(excess[seen])
    exponent = float((off**2 / (2 * (variance[seen] + off / 3))).max())
    return min(1.0, 2 * int(seen.sum()) * math.exp(-exponent))


def _uniform_bins(places: npt.NDArray[np.float64]) -> float:
    expected = places.size / BINS
    if expected < MIN_PER_BIN:
        return 1.0
    counts = np.bincount(np.minimum((places * BINS).astype(np.int64), BINS - 1), minlength=BINS)
    return chi_square_tail(float(((counts - expected) ** 2 / expected).sum()), BINS - 1)


def _detectable(tokens: int, likeliest: float, threshold: float) -> float:
    """Replacing a share s of the tokens by the likeliest moves the mean of u by s (1 - E[largest p]) / 2."""
    if tokens == 0 or likeliest >= 1:
        return 1.0
    normal = NormalDist()
    needed = (normal.inv_cdf(1 - threshold / 2) + normal.inv_cdf(POWER)) / math.sqrt(12 * tokens)
    return min(1.0, needed / ((1 - likeliest) / 2))
