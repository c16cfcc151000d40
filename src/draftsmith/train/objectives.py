"""What a stage minimises: each objective turns a batch into a sum of losses, and says over how many terms it is.

Sums and counts are kept apart, so that a step over several micro-batches has the mean over all their terms, whatever
each holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import logsigmoid

from draftsmith.train.chunks import by_chunks, cross_entropy
from draftsmith.train.divergences import DIVERGENCES, accepted_lengths, bucketed, renormalised
from draftsmith.train.packing import PackedBatch
from draftsmith.train.schema import DistillLoss
from draftsmith.train.vocabulary import PrunedEmbedding

__all__ = ["CrossEntropy", "Distillation", "Objective", "Preference", "hidden_states", "rows_of_head", "runs_of"]


class Objective(Protocol):
    """A loss over batches."""

    def terms(self, batch: PackedBatch) -> int:
        """How many terms the sum over this batch has."""
        ...

    def loss_sum(self, model: Any, batch: PackedBatch) -> torch.Tensor:
        """Scalar: the sum of the losses, with its gradient."""
        ...


def hidden_states(model: Any, batch: PackedBatch) -> torch.Tensor:
    """[N, H]: the last hidden states of the places that predict. Runs on the model's device."""
    device = model.device
    output = model.model(
        input_ids=torch.from_numpy(batch.ids)[None].to(device),
        position_ids=torch.from_numpy(batch.positions)[None].to(device),
        use_cache=False,
        document_lengths=batch.lengths,
    )
    states: torch.Tensor = output.last_hidden_state[0]
    return states.index_select(0, torch.from_numpy(batch.at).to(device))


def rows_of_head(model: Any, kept_ids: torch.Tensor | None) -> torch.Tensor:
    """[M, H]: the rows of the output layer for the ids that may be written (None: all). A model that was pruned for
    training (``vocabulary.prune``) has no others."""
    weight: torch.Tensor = model.get_output_embeddings().weight
    if kept_ids is None or isinstance(model.get_input_embeddings(), PrunedEmbedding):
        return weight
    return weight.index_select(0, kept_ids.to(weight.device))


def head_rows(ids: torch.Tensor, kept_ids: torch.Tensor | None, size: int) -> torch.Tensor:
    """For each id its row in the pruned head, -1 where it has none."""
    if kept_ids is None:
        return ids
    rows = torch.full((size,), -1, dtype=torch.int64, device=ids.device)
    rows[kept_ids.to(ids.device)] = torch.arange(len(kept_ids), device=ids.device)
    return rows[ids]


def runs_of(batch: PackedBatch) -> torch.Tensor:
    """int64 [N]: positions with the same number follow one another without a gap in one document."""
    at, document = torch.from_numpy(batch.at), torch.from_numpy(batch.document)
    breaks = torch.ones_like(at)
    breaks[1:] = ((at[1:] != at[:-1] + 1) | (document[1:] != document[:-1])).to(at.dtype)
    return breaks.cumsum(0)


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropy:
    """-log q of the next token: sft and extend."""

    chunk: int
    z_loss: float = 0.0
    kept_ids: torch.Tensor | None = None

    def terms(self, batch: PackedBatch) -> int:
        """Tokens to learn."""
        return int(batch.labels.size)

    def loss_sum(self, model: Any, batch: PackedBatch) -> torch.Tensor:
        """See Objective."""
        states, head = hidden_states(model, batch), rows_of_head(model, self.kept_ids)
        labels = head_rows(torch.from_numpy(batch.labels).to(states.device), self.kept_ids, model.config.vocab_size)
        return by_chunks(cross_entropy(self.z_loss), states, head, labels, chunk=self.chunk).sum()


@dataclass(frozen=True, slots=True, eq=False)
class Distillation:
    """A divergence from the target: from ``target`` (a model, run on the same batch), or from stored log-probabilities.

    ``accepted_length`` minimises minus the mean of ``accepted_lengths`` for rounds of ``draft_length`` tokens. With a
    pruned vocabulary KL and JSD compare with p given that the token is one of the kept.
    """

    loss: DistillLoss
    chunk: int
    target: Any = None
    jsd_beta: float = 0.5
    ce_weight: float = 0.0
    temperature: float = 1.0
    draft_length: int = 4
    z_loss: float = 0.0
    kept_ids: torch.Tensor | None = None

    def terms(self, batch: PackedBatch) -> int:
        """Tokens to learn."""
        return int(batch.labels.size)

    def loss_sum(self, model: Any, batch: PackedBatch) -> torch.Tensor:
        """See Objective."""
        states, head = hidden_states(model, batch), rows_of_head(model, self.kept_ids)
        values = self.divergences(states, head, batch)
        if self.loss == "accepted_length":
            values = -accepted_lengths(1 - values, runs_of(batch).to(values.device), self.draft_length)
        total = (1 - self.ce_weight) * values.sum()
        if self.ce_weight:
            labels = torch.from_numpy(batch.labels).to(states.device)
            labels = head_rows(labels, self.kept_ids, model.config.vocab_size)
            entropy = by_chunks(cross_entropy(self.z_loss), states, head, labels, chunk=self.chunk)
            total = total + self.ce_weight * entropy.sum()
        return total

    def divergences(self, states: torch.Tensor, head: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """[N]: the divergence at each position."""
        if self.target is not None:
            with torch.no_grad():
                teacher = hidden_states(self.target, batch)
            return by_chunks(self._against_model, states, head, teacher, chunk=self.chunk)
        if batch.top_ids is None or batch.top_logprobs is None:
            raise ValueError("the batch has no log-probabilities of a target")
        top_ids, top = (torch.from_numpy(array).to(states.device) for array in (batch.top_ids, batch.top_logprobs))
        return by_chunks(self._against_stored, states, head, top_ids, top, chunk=self.chunk)

    def _against_model(self, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = (teacher @ self.target.get_output_embeddings().weight.T).float()
            log_p = (teacher_logits / self.temperature).log_softmax(-1)
            if self.kept_ids is not None:
                log_p = log_p[:, self.kept_ids.to(log_p.device)]
            log_p = log_p[:, : logits.shape[1]]  # padding rows of one of the two are nobody's
            if self.kept_ids is not None and self.loss in ("forward_kl", "reverse_kl", "jsd"):
                log_p = log_p.log_softmax(-1)
        log_q = (logits / self.temperature).log_softmax(-1)[:, : log_p.shape[1]]
        return DIVERGENCES[self.loss](log_p, log_q, self.jsd_beta)

    def _against_stored(self, logits: torch.Tensor, top_ids: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        log_q = logits.log_softmax(-1)
        size = int(top_ids.max()) + 1 if self.kept_ids is None else int(max(self.kept_ids.max(), top_ids.max())) + 1
        rows = head_rows(top_ids, self.kept_ids, size)
        top = torch.where(rows >= 0, top, torch.full_like(top, -torch.inf))
        if self.loss in ("forward_kl", "reverse_kl", "jsd"):
            known = bucketed(log_q, rows.clamp_min(0))
            return DIVERGENCES[self.loss](renormalised(top), known, self.jsd_beta)
        return DIVERGENCES[self.loss](top, log_q.gather(-1, rows.clamp_min(0)), self.jsd_beta)


@dataclass(frozen=True, slots=True, eq=False)
class Preference:
    """DPO: -log sigmoid(beta x margin), the margin being how much more the policy prefers chosen over rejected than
    ``reference`` does, in log-probability of whole replies. IPO: (margin - 1 / (2 beta)) squared, of means per token.

    Documents of a batch come in pairs, chosen first.
    """

    reference: Any
    chunk: int
    beta: float = 0.1
    label_smoothing: float = 0.0
    ipo: bool = False

    def terms(self, batch: PackedBatch) -> int:
        """Pairs."""
        return len(batch.lengths) // 2

    def loss_sum(self, model: Any, batch: PackedBatch) -> torch.Tensor:
        """See Objective."""
        return preference_losses(
            self.margins(model, batch), beta=self.beta, label_smoothing=self.label_smoothing, ipo=self.ipo
        ).sum()

    def margins(self, model: Any, batch: PackedBatch) -> torch.Tensor:
        """[pairs]: (policy - reference) of chosen minus the same of rejected."""
        policy = self._replies(model, batch)
        with torch.no_grad():
            reference = self._replies(self.reference, batch)
        gain = policy - reference.to(policy.device)
        return gain[0::2] - gain[1::2]

    def _replies(self, model: Any, batch: PackedBatch) -> torch.Tensor:
        """[documents]: log-probability of each reply; its mean over tokens for IPO."""
        states, head = hidden_states(model, batch), rows_of_head(model, None)
        labels = torch.from_numpy(batch.labels).to(states.device)
        losses = by_chunks(cross_entropy(), states, head, labels, chunk=self.chunk)
        document = torch.from_numpy(batch.document).to(states.device)
        sums = losses.new_zeros(len(batch.lengths)).index_add(0, document, -losses)
        if not self.ipo:
            return sums
        counts = losses.new_zeros(len(batch.lengths)).index_add(0, document, torch.ones_like(losses))
        return sums / counts


def preference_losses(
    margins: torch.Tensor, *, beta: float, label_smoothing: float = 0.0, ipo: bool = False
) -> torch.Tensor:
    """[pairs]: the loss of each pair."""
    if ipo:
        return (margins - 1 / (2 * beta)).square()
    return -(1 - label_smoothing) * logsigmoid(beta * margins) - label_smoothing * logsigmoid(-beta * margins)
