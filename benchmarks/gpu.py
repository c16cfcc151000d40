"""The torch backend on a GPU: speed against the memory's limit, speculation against its formula, and transformers.

    python -m benchmarks.gpu [--tiny] [--record NAME]

One run gives all tables, in under 25 minutes on an H100. Weights are random, of the shapes of TinyLlama-1.1B,
Mistral-7B and Mixtral-8x7B, and the acceptance of drafts is set by construction (``gpu_shapes.Script``): speed does not
depend on what weights say. What fails (memory, above all) is a row that says so. ``--tiny`` runs the same code on the
processor with shapes of a few thousand weights, to see that it works.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import add_record_option, report, table
from benchmarks.gpu_shapes import Script, ScriptedModel, num_weights, random_folder, random_module
from draftsmith.measure.costs import measure_costs
from draftsmith.model.protocol import TokenRun
from draftsmith.model.torch_backend import TorchModel, TorchOptions, load_torch_model
from draftsmith.speculate import FixedLength, ModelDrafter, generate
from draftsmith.types import Request, SamplingParams

ACCEPTANCES = (0.6, 0.8, 0.9)
DRAFT_LENGTHS = (2, 4, 7)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where to run, and how much."""

    device: torch.device
    tiny: bool

    @property
    def tokens(self) -> int:
        """Of a reply."""
        return 16 if self.tiny else 256

    @property
    def prompt(self) -> list[int]:
        """Any tokens."""
        return [(37 * i + 11) % 300 for i in range(16 if self.tiny else 128)]

    def module(self, shape: str, **changes: Any) -> Any:
        """In bfloat16."""
        return random_module(shape, self.device, torch.bfloat16, tiny=self.tiny, **changes)

    def model(self, module: Any, exact_width: int | None = None) -> TorchModel:
        """Behind the protocol, with graphs of its steps where they can be had."""
        context = module.config.max_position_embeddings
        return TorchModel(module, max_context=context, exact_width=exact_width, graphs=True)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_bytes(self) -> int:
        """The most memory that was allocated since the last call; 0 where nobody counts."""
        if self.device.type != "cuda":
            return 0
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tiny", action="store_true", help="small shapes on the processor, to try the script")
    add_record_option(parser)
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny tries the script on the processor")
    setting = Setting(torch.device("cpu" if options.tiny else "cuda"), options.tiny)
    parts: dict[str, Callable[[Setting], tuple[list[str], list[list[object]]]]] = {
        "plain": plain_speed,
        "speculative": speculative_speed,
        "experts": experts,
        "long": long_context,
        "memory": four_bit_memory,
    }
    tables, result = [], {}
    for name, measure in parts.items():
        header, rows = measure(setting)
        tables.append(table(header, rows))
        result[name] = [dict(zip(header, row, strict=True)) for row in rows]
        setting.peak_bytes()
    device = torch.cuda.get_device_name() if setting.device.type == "cuda" else "the processor, tiny shapes"
    report(f"The torch backend on {device}", tables, {"device": device, **result}, options.record, packages=("torch",))


def plain_speed(setting: Setting) -> tuple[list[str], list[list[object]]]:
    """A 1.1B shape alone, against the time that reading its weights takes, and transformers on the same weights."""
    module = setting.module("1.1B")
    model, exact = setting.model(module), setting.model(module, exact_width=8)
    by_itself = TorchModel(module, max_context=module.config.max_position_embeddings)
    limit = bandwidth(setting) / (2.0 * num_weights(module))
    speeds: list[tuple[str, float]] = [
        ("draftsmith", _speed(setting, model)[0]),
        ("draftsmith, exact", _speed(setting, exact)[0]),
        ("draftsmith, no graphs", _speed(setting, by_itself)[0]),
        ("transformers", _reference_speed(setting, module)),
        ("transformers, compiled", _reference_speed(setting, module, cache_implementation="static")),
    ]
    rows: list[list[object]] = [["1.1B, bf16", name, speed, 100 * speed / limit] for name, speed in speeds]
    return ["shape", "program", "tokens/s", "% of the limit"], rows


def speculative_speed(setting: Setting) -> tuple[list[str], list[list[object]]]:
    """A 7B shape with a 1.1B draft: measured, what the formula gives, and transformers' assisted generation."""
    target_module, draft_module = setting.module("7B"), setting.module("1.1B")
    target, draft = setting.model(target_module), setting.model(draft_module)
    plain, reply = _speed(setting, target)
    compiled = _reference_speed(setting, target_module, cache_implementation="static")
    costs = measure_costs(target, draft, setting.prompt)
    rows: list[list[object]] = []
    for acceptance in ACCEPTANCES:
        script = Script.agreeing(setting.prompt, reply, acceptance, target.vocab_size)
        hook = script.attach(draft_module)
        assisted = _reference_speed(setting, target_module, assistant_model=draft_module)
        hook.remove()
        drafter = ModelDrafter(ScriptedModel(draft, script), target_vocab_size=target.vocab_size)
        for k in DRAFT_LENGTHS:
            speed, text = _speed(setting, target, drafter, k)
            expected = (1 - acceptance ** (k + 1)) / (1 - acceptance) / costs.round_cost(k)
            same = "yes" if text == reply else "no"
            rows.append([acceptance, k, speed, speed / plain, expected, assisted, compiled, same])
    header = ["acceptance", "k", "tokens/s", "speed-up", "formula", "assisted tokens/s", "compiled tokens/s", "same"]
    return header, rows


def experts(setting: Setting) -> tuple[list[str], list[list[object]]]:
    """v(m) of an 8x7B shape. Four of its layers in bfloat16, which all fit: v is of layers, so it is that of all."""
    module = setting.module("8x7B", num_hidden_layers=2 if setting.tiny else 4)
    model = TorchModel(module, max_context=512)
    curve = measure_costs(model, None, setting.prompt)
    rows: list[list[object]] = [[size, 1000 * curve.plain_s * v, v] for size, v in curve.verify.items()]
    return ["8x7B, 4 of 32 layers: tokens", "ms", "v"], rows


def long_context(setting: Setting) -> tuple[list[str], list[list[object]]]:
    """Reading and writing at the end of long contexts."""
    model = setting.model(setting.module("1.1B"))
    rows: list[list[object]] = []
    for length in (64, 128) if setting.tiny else (1024, 8192, 32768 - 64):
        cache = model.new_cache()
        ids = (setting.prompt * (length // len(setting.prompt) + 1))[:length]
        began = time.perf_counter()
        model.forward([TokenRun(cache, ids)])
        read = time.perf_counter() - began
        steps = []
        for _ in range(8):
            began = time.perf_counter()
            model.forward([TokenRun(cache, [7])])
            steps.append(time.perf_counter() - began)
        rows.append([length, length / read, 1 / median(steps), cache.num_bytes / 2**20])
    return ["context", "read, tokens/s", "write, tokens/s", "cache, MiB"], rows


def four_bit_memory(setting: Setting) -> tuple[list[str], list[list[object]]]:
    """A 7B and a 1.1B shape in 4 bits, with a text of 4k tokens in the caches of both."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [random_folder(Path(folder, name), name, setting.device, tiny=setting.tiny) for name in ("7B", "1.1B")]
        setting.peak_bytes()
        options = TorchOptions(quantize="4bit", device=str(setting.device), dtype="bfloat16")
        try:
            models = [load_torch_model(path, path.name, options) for path in paths]
        except Exception as error:  # a row that says so
            return ["pair", "peak, GiB"], [["7B + 1.1B in 4 bits", str(error)]]
    loading = setting.peak_bytes()
    length = 64 if setting.tiny else 4096 - 8
    caches = [model.new_cache() for model in models]
    for model, cache in zip(models, caches, strict=True):
        model.forward([TokenRun(cache, (setting.prompt * length)[:length])])
        model.forward([TokenRun(cache, [5] * 8, num_logits=8)])
    return ["7B + 1.1B in 4 bits", "peak, GiB"], [
        ["loading", loading / 2**30],
        ["at 4k tokens of context", setting.peak_bytes() / 2**30],
    ]


def bandwidth(setting: Setting) -> float:
    """Bytes a second that the device reads, measured by adding up a large tensor."""
    values = torch.ones((1 << 20) if setting.tiny else (1 << 31), dtype=torch.bfloat16, device=setting.device)
    seconds = []
    for _ in range(8):
        setting.wait()
        began = time.perf_counter()
        values.sum()
        setting.wait()
        seconds.append(time.perf_counter() - began)
    return values.numel() * 2 / min(seconds)


def _speed(
    setting: Setting, model: TorchModel, drafter: ModelDrafter | None = None, k: int = 1
) -> tuple[float, list[int]]:
    """(tokens a second after the first one, the better of two runs; the tokens), greedily."""
    params = SamplingParams(greedy=True, max_new_tokens=setting.tokens, ignore_eos=True, seed=0)
    request = Request(prompt_ids=tuple(setting.prompt), sampling=params)
    best, text = 0.0, []
    for _ in range(2):
        session = drafter.start(request, "coupled") if drafter is not None else None
        rounds = generate(model, model.new_cache(), request, session=session, policy=FixedLength(k))
        text = list(next(rounds).token_ids)
        began = time.perf_counter()
        for written in rounds:
            text += written.token_ids
        best = max(best, (len(text) - 1) / (time.perf_counter() - began))
    return best, text


def _reference_speed(setting: Setting, module: Any, **options: Any) -> float:
    """Tokens a second of ``module.generate``, reading the prompt left out; the better of two runs after a first one."""
    given = torch.tensor([setting.prompt], device=setting.device)

    def seconds(tokens: int) -> float:
        setting.wait()
        began = time.perf_counter()
        module.generate(
            given,
            attention_mask=torch.ones_like(given),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        setting.wait()
        return time.perf_counter() - began

    seconds(setting.tokens)
    whole = min(seconds(setting.tokens) for _ in range(2))
    first = min(seconds(1) for _ in range(2))
    return (setting.tokens - 1) / max(1e-9, whole - first)


if __name__ == "__main__":
    main()
