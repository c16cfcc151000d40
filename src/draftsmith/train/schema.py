"""The settings of a recipe: one frozen class a kind of stage. Field names are the keys of the TOML file.

Every value is checked on construction against ``_RANGES``; UsageError says the key, what it is and what it must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from draftsmith.errors import UsageError

__all__ = [
    "STAGES",
    "DataSource",
    "DistillStage",
    "DpoStage",
    "ExtendStage",
    "GenerateStage",
    "InitStage",
    "PackStage",
    "SftStage",
    "Stage",
    "TrainingStage",
]

DataFormat = Literal["auto", "alpaca", "sharegpt", "messages", "pairs", "preference", "text", "target"]
RoundTo = Literal["Q4_1", "Q8_0"]
DistillLoss = Literal["forward_kl", "reverse_kl", "jsd", "tv", "log_acceptance", "accepted_length"]

_POSITIVE = (lambda value: value > 0, "above 0")
_AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
_NOT_NEGATIVE = (lambda value: value >= 0, "0 or more")
_SHARE = (lambda value: 0 <= value <= 1, "from 0 to 1")
_BELOW_1 = (lambda value: 0 <= value < 1, "from 0 to below 1")
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "adam_beta1": _BELOW_1,
        "adam_beta2": _BELOW_1,
        "adam_eps": _POSITIVE,
        "batch_tokens": _AT_LEAST_1,
        "beta": _POSITIVE,
        "ce_weight": _SHARE,
        "clip_norm": _NOT_NEGATIVE,
        "draft_length": (lambda value: 1 <= value <= 32, "from 1 to 32"),
        "epochs": _POSITIVE,
        "eval_every": _NOT_NEGATIVE,
        "eval_limit": _AT_LEAST_1,
        "final_learning_rate": _SHARE,
        "gradient_accumulation": _AT_LEAST_1,
        "greedy_share": _SHARE,
        "heldout_share": _BELOW_1,
        "hidden_size": _AT_LEAST_1,
        "intermediate_size": _AT_LEAST_1,
        "jsd_beta": (lambda value: 0 < value < 1, "between 0 and 1"),
        "keep_checkpoints": _AT_LEAST_1,
        "keep_vocabulary": _AT_LEAST_1,
        "label_smoothing": (lambda value: 0 <= value < 0.5, "from 0 to below 0.5"),
        "learning_rate": _POSITIVE,
        "limit": _AT_LEAST_1,
        "log_every": _AT_LEAST_1,
        "logits_chunk": _AT_LEAST_1,
        "max_context": _AT_LEAST_1,
        "max_length": (lambda value: value >= 2, "at least 2"),
        "max_new_tokens": _AT_LEAST_1,
        "num_layers": _AT_LEAST_1,
        "num_prompts": _NOT_NEGATIVE,
        "processes": _AT_LEAST_1,
        "requests": _AT_LEAST_1,
        "rope_factor": (lambda value: value >= 1, "1 or more"),
        "rope_theta": _POSITIVE,
        "rows_per_part": _AT_LEAST_1,
        "samples": _AT_LEAST_1,
        "save_every": _AT_LEAST_1,
        "seed": (lambda value: 0 <= value < 2**63, "from 0 to 2^63 - 1"),
        "steps": _NOT_NEGATIVE,
        "target_temperature": _POSITIVE,
        "temperature": _NOT_NEGATIVE,
        "top_logprobs": (lambda value: 0 <= value <= 100, "from 0 (none) to 100"),
        "warmup_steps": _NOT_NEGATIVE,
        "weight_decay": _NOT_NEGATIVE,
        "z_loss": _NOT_NEGATIVE,
    }
)


class _Checked:
    """Checks the values of a dataclass once it is built."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # its subclasses are dataclasses
            value = getattr(self, field.name)
            if value is None or field.name not in _RANGES or not isinstance(value, int | float):
                continue
            good, wanted = _RANGES[field.name]
            if not (isinstance(value, int) or math.isfinite(value)) or not good(value):
                raise UsageError(f"{field.name} is {value!r}; it must be {wanted}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource(_Checked):
    """A file or a folder of files (.jsonl, .json, .parquet, .txt, .gz of these; or parts that a generate stage wrote).

    ``format`` auto: by the keys of each row. ``limit``: only the first rows.
    """

    path: str
    format: DataFormat = "auto"
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(_Checked):
    """``name`` is its table's name and its folder below the recipe's output. ``model``: a reference; None means the
    result of the nearest stage before that made a model."""

    name: str
    kind: str
    model: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InitStage(Stage):
    """A smaller model from a bigger one. None keeps what the parent has.

    ``layers``: which of the parent's layers to keep, or ``num_layers`` spread evenly. ``from_scratch``: random weights
    of this shape. ``keep_vocabulary``: the draft may write only so many ids, the most frequent in ``data``.
    ``packed``: a draft to take further: ``embedded``, a file that a pack stage wrote, or ``stage:NAME`` of one. Its
    weights and ids are taken, and nothing of the parent but the tokenizer.
    """

    packed: str | None = None
    layers: tuple[int, ...] | None = None
    num_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    from_scratch: bool = False
    keep_vocabulary: int | None = None
    data: tuple[DataSource, ...] = ()
    prompt_format: str | None = None
    bad_rows: Literal["stop", "skip"] = "stop"
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStage(Stage):
    """What all stages that learn share.

    A micro-batch is as many whole documents as fit into ``batch_tokens``; a step is ``gradient_accumulation`` of them.
    ``steps``: how many; None means ``epochs`` over the data. ``too_long``: what becomes of documents longer than
    ``max_length``. ``final_learning_rate``: the cosine's end, as a share of ``learning_rate``. ``eval_every`` 0: only
    at the end. ``acceptance_target``: the model (or ``"data"`` for log-probabilities stored in eval_data) against which
    acceptance on ``eval_data`` is told while training.
    """

    data: tuple[DataSource, ...] = ()
    eval_data: tuple[DataSource, ...] = ()
    eval_limit: int = 64
    acceptance_target: str | None = None
    draft_length: int = 4
    prompt_format: str | None = None
    max_length: int = 2048
    too_long: Literal["stop", "skip", "cut"] = "stop"
    bad_rows: Literal["stop", "skip"] = "stop"
    batch_tokens: int = 8192
    gradient_accumulation: int = 1
    steps: int | None = None
    epochs: float = 1.0
    learning_rate: float = 2e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    final_learning_rate: float = 0.1
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_norm: float = 1.0
    z_loss: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    gradient_checkpointing: bool = False
    logits_chunk: int = 1024
    eval_every: int = 0
    save_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 10
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class SftStage(TrainingStage):
    """Full fine-tuning on replies; plain text trains on every token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendStage(TrainingStage):
    """A longer context, then continued training on long documents (``too_long`` is cut: texts are cut into pieces).

    ``rope`` theta raises the base to ``rope_theta``; linear and yarn divide by ``rope_factor`` (None: the context's
    growth). ``steps`` 0: only the positions' scaling, without training or data. ``position_skips``: each document is
    read in two parts, the second moved on by a random distance, so that short documents teach all distances of the new
    context (PoSE, arXiv:2309.10400).
    """

    rope: Literal["theta", "linear", "yarn"] = "theta"
    max_context: int = 32768
    rope_theta: float | None = None
    rope_factor: float | None = None
    position_skips: bool = False
    too_long: Literal["stop", "skip", "cut"] = "cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillStage(TrainingStage):
    """Learn the target's distribution. ``target`` None: from the log-probabilities that a generate stage stored.

    ``ce_weight``: share of ordinary cross-entropy in the loss. ``target_temperature`` divides both models' logits.
    ``round_to``: compute with weights rounded as a pack stage will store them, so that the draft learns to bear it.
    """

    target: str | None = None
    loss: DistillLoss = "forward_kl"
    ce_weight: float = 0.0
    jsd_beta: float = 0.5
    target_temperature: float = 1.0
    round_to: RoundTo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoStage(TrainingStage):
    """Direct preference optimisation (arXiv:2305.18290), or IPO (arXiv:2310.12036), against the stage's own start.

    ``data`` may be the folder of a generate stage with several ``samples``: replies that end are preferred to others.
    """

    loss: Literal["dpo", "ipo"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateStage(Stage):
    """Let the target write replies to prompts, with its ``top_logprobs`` most likely tokens at each place.

    ``model`` is the target. ``num_prompts``: so many more prompts that the target makes up itself, from its template's
    user turn (arXiv:2406.08464), which begins with one of ``prompt_starts`` in turn (an empty one leaves the beginning
    to the target). ``turns``: the target writes the replies between a prompt's turns too; or they are given, and each
    turn of the user's, with what stands before it, is a prompt of its own. ``samples``: replies to each prompt.
    ``greedy_share``: of the replies, drawn by the seed, that are written greedily. ``processes``: engines side by side,
    each with ``threads``.

    ``heldout_share``: of the prompts, drawn by the seed, whose replies go to the folder ``heldout`` below the stage's
    and not to the rest: ``stage:NAME/heldout``. ``endpoint``: an OpenAI-compatible server that writes instead of the
    engine, asked for ``endpoint_model`` (None: ``model``), so many ``requests`` at a time; ``model`` then gives the
    tokenizer and the prompt format only. What is longer than the context is told and left out.
    """

    prompts: tuple[DataSource, ...] = ()
    num_prompts: int = 0
    prompt_starts: tuple[str, ...] = ()
    bad_rows: Literal["stop", "skip"] = "stop"
    turns: Literal["written", "given"] = "written"
    samples: int = 1
    greedy_share: float = 0.0
    heldout_share: float = 0.0
    endpoint: str | None = None
    endpoint_model: str | None = None
    requests: int = 16
    processes: int = 1
    draft: str = "auto"
    quantize: Literal["none", "4bit", "8bit"] = "none"
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    top_logprobs: int = 32
    prompt_format: str | None = None
    rows_per_part: int = 200
    threads: int | None = None
    max_context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackStage(Stage):
    """A draft with a pruned vocabulary as one GGUF file, ``draft.gguf``, that draftsmith drafts with.

    ``blocks``: how its layers are stored, ``vocabulary_blocks``: its embedding and output layer. ``title``: its name.
    """

    title: str = ""
    blocks: Literal["Q4_1", "Q8_0", "F16"] = "Q4_1"
    vocabulary_blocks: Literal["Q4_1", "Q8_0", "F16"] = "Q4_1"


STAGES: Mapping[str, type[Stage]] = MappingProxyType(
    {
        "init": InitStage,
        "extend": ExtendStage,
        "generate": GenerateStage,
        "sft": SftStage,
        "distill": DistillStage,
        "dpo": DpoStage,
        "pack": PackStage,
    }
)
