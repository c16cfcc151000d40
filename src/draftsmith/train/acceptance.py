"""What a draft is worth, told while it learns: how much of the target's held-out text it would get accepted.

Closed forms over every position of text that the target wrote (or would read), not a simulation: for sampling at
temperature 1 the mean of sum min(p, q), for greedy decoding the share of equal argmaxes, and from both the mean
acceptance length of rounds of k tokens, bonus token included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from draftsmith.train.chunks import by_chunks, cross_entropy
from draftsmith.train.divergences import acceptance, accepted_lengths
from draftsmith.train.objectives import Preference, head_rows, hidden_states, rows_of_head, runs_of
from draftsmith.train.packing import PackedBatch, pack, plan_bins
from draftsmith.train.store import TokenStore

__all__ = ["HeldOut"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeldOut:
    """Held-out documents and what to measure on them.

    ``target``: a model, or None for the log-probabilities in the store; neither measures the loss alone. Stored values
    know the likeliest tokens only, so acceptance is then a lower bound. ``preference``: measure pairs instead.
    """

    store: TokenStore
    limit: int
    batch_tokens: int
    chunk: int
    draft_length: int
    context: Callable[[], Any]
    target: Any = None
    kept_ids: torch.Tensor | None = None
    preference: Preference | None = None

    def measure(self, model: Any) -> dict[str, float]:
        """Metrics with the prefix ``eval_``. The model is left in evaluation mode."""
        model.eval()
        with torch.no_grad(), self.context():
            return self._pairs(model) if self.preference is not None else self._texts(model)

    def _batches(self) -> Iterator[PackedBatch]:
        lengths = self.store.group_lengths()[: self.limit]
        capacity = max(self.batch_tokens, int(lengths.max()))
        for groups in plan_bins(lengths, capacity, 0, 0):
            yield pack(self.store, groups)

    def _texts(self, model: Any) -> dict[str, float]:
        sums: dict[str, float] = {}
        count = 0
        head = rows_of_head(model, self.kept_ids)
        for batch in self._batches():
            states = hidden_states(model, batch)
            labels = head_rows(torch.from_numpy(batch.labels).to(states.device), self.kept_ids, model.config.vocab_size)
            values = {"eval_loss": by_chunks(cross_entropy(), states, head, labels, chunk=self.chunk)}
            rates = self._rates(states, head, batch)
            if rates is not None:
                run = runs_of(batch).to(states.device)
                for name, rate in zip(("acceptance", "greedy_match"), rates.unbind(-1), strict=True):
                    values[f"eval_{name}"] = rate
                lengths = {"sampled": rates[:, 0], "greedy": rates[:, 1]}
                for name, rate in lengths.items():
                    values[f"eval_length_{name}"] = accepted_lengths(rate, run, self.draft_length)
            count += len(batch.labels)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.double().sum())
        return {name: total / count for name, total in sums.items()}

    def _rates(self, states: torch.Tensor, head: torch.Tensor, batch: PackedBatch) -> torch.Tensor | None:
        """[N, 2]: acceptance when sampling, and 1 where both argmaxes are equal."""
        if self.target is not None:
            return by_chunks(self._against_model, states, head, hidden_states(self.target, batch), chunk=self.chunk)
        if batch.top_ids is None or batch.top_logprobs is None:
            return None
        top_ids, top = (torch.from_numpy(array).to(states.device) for array in (batch.top_ids, batch.top_logprobs))
        size = max(int(self.store.top_k and top_ids.max()), head.shape[0], *self._largest()) + 1
        rows = head_rows(top_ids, self.kept_ids, size)
        return by_chunks(_against_stored, states, head, rows, top, chunk=self.chunk)

    def _largest(self) -> tuple[int, ...]:
        return () if self.kept_ids is None else (int(self.kept_ids.max()),)

    def _against_model(self, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        weight = self.target.get_output_embeddings().weight
        log_p = (teacher @ weight.T).float().log_softmax(-1)
        best = log_p.argmax(-1)
        if self.kept_ids is not None:
            kept = self.kept_ids.to(log_p.device)
            log_p = log_p[:, kept]
            own = kept[logits.argmax(-1)]
        else:
            own = logits.argmax(-1)
        width = min(log_p.shape[1], logits.shape[1])
        rate = acceptance(log_p[:, :width], logits.log_softmax(-1)[:, :width])
        return torch.stack([rate, (own == best).float()], -1)

    def _pairs(self, model: Any) -> dict[str, float]:
        if self.preference is None:
            return {}
        margins = torch.cat([self.preference.margins(model, batch) for batch in self._batches()])
        return {
            "eval_preference_accuracy": float((margins > 0).double().mean()),
            "eval_margin": float(margins.double().mean()),
        }


def _against_stored(logits: torch.Tensor, rows: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """``rows`` [n, K]: the head's rows of the target's likeliest ids, best first, -1 where it has none."""
    top = torch.where(rows >= 0, top, torch.full_like(top, -torch.inf))
    rate = acceptance(top, logits.log_softmax(-1).gather(-1, rows.clamp_min(0)))
    return torch.stack([rate, (logits.argmax(-1) == rows[:, 0]).float()], -1)


def as_evaluation(held_out: HeldOut | None) -> Callable[[Any], Mapping[str, float]]:
    """For ``loop.Run.evaluate``."""
    return (lambda model: held_out.measure(model)) if held_out is not None else (lambda _: {})
