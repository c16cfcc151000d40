"""Training on one GPU: tokens a second and share of peak of the 1.1B shape at 2k and 32k, beside transformers' Trainer.

    python -m benchmarks.train_gpu [--tiny] [--card-tokens N] [--record NAME]

Both take the same steps over the same random tokens, in turn: AdamW in fp32 over bfloat16 products, gradient
checkpointing, one document a row. Ours is the loop of ``draftsmith train``; theirs is ``Trainer`` with its fastest
built-in attention (``sdpa``). The first steps are not counted. The hours are those of three epochs over
``--card-tokens`` tokens at our speed, to hold beside the 3.5 hours on an A100 that the model's card names. ``--tiny``
runs the same code on the processor, to see that it works. Needs accelerate (extra torch).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import add_record_option, report, run_script, table
from benchmarks.gpu_shapes import SHAPES
from draftsmith.train.attention import NAME as OUR_ATTENTION
from draftsmith.train.encode import Document
from draftsmith.train.flops import peak_flops, step_flops
from draftsmith.train.loop import Run, train
from draftsmith.train.objectives import CrossEntropy
from draftsmith.train.schema import DataSource, SftStage
from draftsmith.train.store import StoreWriter, TokenStore

CARD_TOKENS = 22_000_000  # about what no_robots and Capybara hold together; once, not three times
EPOCHS = 3
WARM_UP, COUNTED = 3, 8  # steps
TINY: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """``length`` tokens a row, ``rows`` of them a step."""

    length: int
    rows: int
    device: torch.device
    tiny: bool

    def model(self, attention: str) -> Any:
        """Random weights in fp32."""
        from transformers import AutoConfig, AutoModelForCausalLM

        shape = {**SHAPES["1.1B"], **(TINY if self.tiny else {})}
        config = AutoConfig.for_model(str(shape.pop("architecture")), **shape)
        torch.manual_seed(0)
        make: Any = AutoModelForCausalLM.from_config
        model = make(config, dtype=torch.float32, attn_implementation=attention)
        model.config.use_cache = False
        return model

    def ids(self) -> Any:
        """uint32 [rows of all steps, length]."""
        vocabulary = TINY["vocab_size"] if self.tiny else 32000
        rows = self.rows * (WARM_UP + COUNTED)
        return np.random.default_rng(0).integers(0, vocabulary, (rows, self.length)).astype(np.uint32)


class Clock:
    """Seconds of the steps after the warm-up."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._steps, self._began, self.seconds = device, 0, 0.0, 0.0

    def step(self) -> None:
        """Call at the end of each step."""
        self._steps += 1
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self._steps == WARM_UP:
            self._began = time.perf_counter()
        self.seconds = time.perf_counter() - self._began


def main() -> None:
    """All rows and one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tiny", action="store_true", help="a small shape on the processor, to try the script")
    parser.add_argument("--card-tokens", type=int, default=CARD_TOKENS, help="tokens of the card's data, one epoch")
    add_record_option(parser)
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny tries the script without one")
    device = torch.device("cpu" if options.tiny else "cuda")
    shapes = [(32, 4), (128, 1)] if options.tiny else [(2048, 16), (32768, 1)]
    rows = [
        measured(name, run, Setting(length, count, device, options.tiny))
        for length, count in shapes
        for name, run in (("draftsmith", ours), ("transformers Trainer", theirs))
    ]
    for own, other in zip(rows[::2], rows[1::2], strict=True):
        speed, beside = own.get("tokens/s"), other.get("tokens/s")
        own["times Trainer"] = speed / beside if speed and beside else None
        own["hours"] = EPOCHS * options.card_tokens / speed / 3600 if speed else None
    header = ["tokens a row", "program", "tokens/s", "share of peak", "peak memory", "times Trainer", "hours"]
    tables = [
        table(header, [_cells(row) for row in rows]),
        f"Hours: of {EPOCHS} epochs over {options.card_tokens:,} tokens.",
    ]
    report(
        "Training throughput of the 1.1B shape",
        tables,
        {"rows": rows, "card_tokens": options.card_tokens},
        options.record,
        packages=("torch", "transformers", "accelerate"),
    )


def measured(name: str, run: Callable[[Setting, Path, Clock], Any], setting: Setting) -> dict[str, Any]:
    """One row; what does not fit is a row that says so."""
    row: dict[str, Any] = {"length": setting.length, "program": name}
    clock = Clock(setting.device)
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = run(setting, Path(folder), clock)
    except torch.cuda.OutOfMemoryError:
        return row | {"failed": "out of memory"}
    tokens = setting.length * setting.rows * COUNTED / clock.seconds
    flops = step_flops(model, [setting.length]) / setting.length
    row |= {"tokens/s": tokens, "share": tokens * flops / peak_flops(setting.device, "bfloat16")}
    return row | ({"memory": torch.cuda.max_memory_allocated()} if setting.device.type == "cuda" else {})


def ours(setting: Setting, folder: Path, clock: Clock) -> Any:
    """The loop of ``draftsmith train``; the model."""
    model = setting.model(OUR_ATTENTION)
    stage = SftStage(
        name="sft",
        kind="sft",
        data=(DataSource(path="random"),),
        max_length=setting.length,
        batch_tokens=setting.length * setting.rows,
        steps=WARM_UP + COUNTED,
        learning_rate=1e-5,
        dtype="bfloat16",
        gradient_checkpointing=True,
        log_every=1,
        save_every=1 << 30,
    )
    run = Run(
        stage=stage,
        model=model,
        objective=CrossEntropy(stage.logits_chunk),
        store=_store(setting, folder),
        folder=folder / "run",
        settings_key="benchmark",
        evaluate=lambda _: {},
        tell=lambda _: clock.step(),
        device=setting.device,
    )
    train(run)
    return model


def theirs(setting: Setting, folder: Path, clock: Clock) -> Any:
    """``transformers.Trainer`` on the same rows; the model."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Timed(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    model = setting.model("sdpa")
    rows = [{"input_ids": row, "labels": row} for row in torch.from_numpy(setting.ids().astype(np.int64))]
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=setting.rows,
        max_steps=WARM_UP + COUNTED,
        learning_rate=1e-5,
        bf16=True,
        activation_checkpointing=True,
        optim="adamw_torch_fused" if setting.device.type == "cuda" else "adamw_torch",
        use_cpu=setting.device.type == "cpu",
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer: Any = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Timed()])
    trainer.train()
    return model


def _store(setting: Setting, folder: Path) -> TokenStore:
    with StoreWriter(folder / "store", 1) as writer:
        for ids in setting.ids():
            mask = np.ones(ids.size, np.bool_)
            mask[0] = False
            writer.add(Document(ids, mask))
        return writer.finish({})


def _cells(row: Mapping[str, Any]) -> list[str]:
    shown = [f"{row['length']:,}", str(row["program"])]
    if "failed" in row:
        return [*shown, str(row["failed"]), "", "", "", ""]
    memory = f"{row['memory'] / 2**30:.1f} GiB" if "memory" in row else ""
    times = f"{row['times Trainer']:.2f}" if row.get("times Trainer") else ""
    hours = f"{row['hours']:.2f}" if row.get("hours") else ""
    return [*shown, f"{row['tokens/s']:,.0f}", f"{row['share']:.1%}", memory, times, hours]


if __name__ == "__main__":
    run_script(main)
