"""The parts of ``benchmarks.gpu``: each makes its models, measures, and gives a table and verdicts."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_shapes import Script, num_weights, random_folder, random_module, random_packed
from draftsmith.measure.costs import measure_costs
from draftsmith.model.protocol import DraftRun, TokenChoice, TokenRun
from draftsmith.model.torch_backend import TorchModel, TorchOptions, load_torch_model
from draftsmith.speculate import FixedLength, ModelDrafter, generate
from draftsmith.types import Request, SamplingParams

ACCEPTANCES = (0.6, 0.8, 0.9)
DRAFT_LENGTHS = (2, 4, 7)
ASSISTED_LENGTHS = (4, 7)
GREEDY = TokenChoice(greedy=True, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, position=0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A promise, what was measured of it, and whether it holds."""

    promise: str
    measured: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A part's table, with a sentence above it, and its verdicts."""

    note: str
    header: list[str]
    rows: list[list[object]]
    verdicts: list[Verdict]


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
        return self.text(16 if self.tiny else 128)

    @property
    def reply(self) -> list[int]:
        """What scripted models say, with some more at the end that drafts may ask for."""
        return self.text(self.tokens + 64)[::-1]

    def text(self, length: int) -> list[int]:
        """So many tokens."""
        return [(37 * i + 11) % 300 for i in range(length)]

    def module(self, shape: str, **changes: Any) -> Any:
        """In bfloat16."""
        return random_module(shape, self.device, torch.bfloat16, tiny=self.tiny, **changes)

    def packed(self, shape: str) -> Any:
        """In 4 bits."""
        return random_packed(shape, self.device, tiny=self.tiny)

    def model(self, module: Any, exact_width: int | None = None, *, graphs: bool = True) -> TorchModel:
        """Behind the protocol, with graphs of its steps where they can be had."""
        context = module.config.max_position_embeddings
        model = TorchModel(module, max_context=context, exact_width=exact_width, graphs=graphs)
        model.writes_ahead = exact_width is None  # on the processor, too: this is what is to be tried
        model.place = self.device.type
        return model

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


def plain_speed(setting: Setting) -> Found:
    """A 1.1B shape alone, against the time that reading its weights takes, and transformers on the same weights."""
    module = setting.module("1.1B")
    limit = bandwidth(setting) / (2.0 * num_weights(module))
    speeds: list[tuple[str, float]] = [
        ("draftsmith", _speed(setting, setting.model(module))[0]),
        ("draftsmith, exact", _speed(setting, setting.model(module, exact_width=8))[0]),
        ("draftsmith, no graphs", _speed(setting, setting.model(module, graphs=False))[0]),
        ("transformers", _reference_speed(setting, module)),
        ("transformers, compiled", _reference_speed(setting, module, cache_implementation="static")),
    ]
    rows: list[list[object]] = [["1.1B, bf16", name, speed, 100 * speed / limit] for name, speed in speeds]
    share = speeds[0][1] / limit
    verdict = Verdict("1.1B bf16, plain: 70 % of the bandwidth limit", f"{share:.0%}", share >= 0.7)
    note = f"The limit: {limit:.0f} tokens/s, from reading weights at the bandwidth that a large sum was read at."
    return Found(note, ["shape", "program", "tokens/s", "% of the limit"], rows, [verdict])


def speculative_speed(setting: Setting) -> Found:
    """A 7B shape with a 1.1B draft: measured, what the formula gives, and transformers' assisted generation."""
    target_module, draft_module = setting.module("7B"), setting.module("1.1B")
    compiled = _reference_speed(setting, target_module, cache_implementation="static")
    right = Script.agreeing(setting.prompt, setting.reply, 1.0, setting.device).attach(target_module)
    target = setting.model(target_module)
    plain = _speed(setting, target)[0]
    rows: list[list[object]] = []
    for acceptance in ACCEPTANCES:
        script = Script.agreeing(setting.prompt, setting.reply, acceptance, setting.device)
        with ExitStack() as stack:
            stack.callback(script.attach(draft_module).remove)
            draft = setting.model(draft_module)  # its graphs have the script in them
            costs = measure_costs(target, None, setting.prompt)
            assisted = max(_assisted_speed(setting, target_module, draft_module, k) for k in ASSISTED_LENGTHS)
            drafter = ModelDrafter(draft, target_vocab_size=target.vocab_size)
            for k in DRAFT_LENGTHS:
                speed, text = _speed(setting, target, drafter, k)
                c = _draft_seconds(setting, draft, k) / costs.plain_s / k
                expected = _tokens_a_round(script.right[: setting.tokens], k) / (k * c + costs.verify_cost(k + 1))
                same = "yes" if text == setting.reply[: len(text)] else "no"
                share = speed / plain / expected
                rows.append([acceptance, k, c, speed, speed / plain, expected, share, assisted, compiled, same])
    right.remove()
    header = ["acceptance", "draft length", "c", "tokens/s", "speed-up", "formula", "measured / formula"]
    header += ["assisted tokens/s", "compiled tokens/s", "same"]
    return Found(
        f"Plain: {plain:.1f} tokens/s. Assisted: the better of {ASSISTED_LENGTHS} tokens. Texts are scripted.",
        header,
        rows,
        _speculative_verdicts(rows),
    )


def _speculative_verdicts(rows: Sequence[Sequence[Any]]) -> list[Verdict]:
    share = min(row[6] for row in rows)
    best = max((row for row in rows if row[0] == 0.8), key=lambda row: float(row[3]))
    assisted, compiled = best[3] / best[7], best[3] / best[8]
    return [
        Verdict("7B with a 1.1B draft: 90 % of the formula, in every row", f"{share:.0%}", share >= 0.9),
        Verdict("2 times transformers' assisted generation, at 0.8", f"{assisted:.2f}", assisted >= 2),
        Verdict("1.2 times transformers' compiled plain generation, at 0.8", f"{compiled:.2f}", compiled >= 1.2),
        Verdict("the text is the one without a draft", ", ".join(sorted({row[9] for row in rows})), best[9] == "yes"),
    ]


def exactness(setting: Setting) -> Found:
    """Whether a draft changes the text of a 1.1B shape, with the exact mode and without; nothing of it is scripted."""
    module = setting.module("1.1B")
    draft_module = setting.module("1.1B", num_hidden_layers=2)
    rows: list[list[object]] = []
    replies = 2 if setting.tiny else 8
    for exact in (False, True):
        model = setting.model(module, exact_width=8 if exact else None)
        difference = model.find_difference()
        same = 0
        for number in range(replies):
            prompt = setting.text(40 + 7 * number)
            reply = _speed(setting, model, prompt=prompt, tokens=64, repeats=1)[1]
            script = Script.agreeing(prompt, reply, 0.7, setting.device)
            handle = script.attach(draft_module)
            drafter = ModelDrafter(setting.model(draft_module), target_vocab_size=model.vocab_size)
            same += _speed(setting, model, drafter, 5, prompt=prompt, tokens=64, repeats=1)[1] == reply
            handle.remove()
        rows.append(["yes" if exact else "no", f"{same} of {replies}", difference or 0.0])
    holds = rows[1][1] == f"{replies} of {replies}" and rows[1][2] == 0.0
    verdict = Verdict("exact: the same text and bits with a draft as without", str(rows[1][1]), holds)
    note = "Random weights: the best two logits are closer to each other than those of trained ones."
    return Found(note, ["exact", "replies with the same text", "largest difference of logits"], rows, [verdict])


def experts(setting: Setting) -> Found:
    """An 8x7B shape in 4 bits with a 1.1B draft: its v(m), and both together."""
    module = setting.packed("8x7B")
    handle = Script.agreeing(setting.prompt, setting.reply, 1.0, setting.device).attach(module)
    model = setting.model(module, graphs=False)
    curve = measure_costs(model, None, setting.prompt, repeats=5, sizes=(1, 2, 3, 4, 5, 6, 8))
    rows: list[list[object]] = [[f"{size} tokens", 1000 * curve.plain_s * v, v] for size, v in curve.verify.items()]
    plain = _speed(setting, model, tokens=setting.tokens // 2, repeats=1)[0]
    draft_module = setting.module("1.1B")
    Script.agreeing(setting.prompt, setting.reply, 0.8, setting.device).attach(draft_module)
    drafter = ModelDrafter(setting.model(draft_module), target_vocab_size=model.vocab_size)
    speed = _speed(setting, model, drafter, 4, tokens=setting.tokens // 2, repeats=1)[0]
    handle.remove()
    verdict = Verdict("8x7B in 4 bits runs with a 1.1B draft", f"{speed / plain:.2f} times plain", speed > 0)
    peak = setting.peak_bytes() / 2**30
    note = (
        f"Plain {plain:.1f} tokens/s; acceptance 0.8, k = 4: {speed:.1f}. Peak {peak:.1f} GiB, all layers and experts."
    )
    return Found(note, ["8x7B, 4 bits", "ms", "v"], rows, [verdict])


def long_context(setting: Setting) -> Found:
    """Reading and writing at the end of long contexts."""
    model = setting.model(setting.module("1.1B"))
    rows: list[list[object]] = []
    for length in (64, 128) if setting.tiny else (1024, 8192, 32768 - 64):
        cache = model.new_cache()
        began = time.perf_counter()
        model.forward([TokenRun(cache, setting.text(length))])
        read = time.perf_counter() - began
        steps = []
        for _ in range(16):
            began = time.perf_counter()
            model.forward([TokenRun(cache, [7])])
            steps.append(time.perf_counter() - began)
        rows.append([length, length / read, 1 / median(steps[4:]), cache.num_bytes / 2**20])
        del cache
    verdict = Verdict("32k tokens of context", f"{rows[-1][0]} read and written after", setting.tiny or len(rows) == 3)
    return Found("1.1B, bf16.", ["context", "read, tokens/s", "write, tokens/s", "cache, MiB"], rows, [verdict])


def four_bit_memory(setting: Setting) -> Found:
    """A 7B and a 1.1B shape in 4 bits, with a text of 4k tokens in the caches of both.

    The 1.1B comes from a folder, as users load it; the 7B is made in 4 bits, which spares 15 GB of disk.
    """
    setting.peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = random_folder(Path(folder, "1.1B"), "1.1B", setting.device, tiny=setting.tiny)
        setting.peak_bytes()
        options = TorchOptions(quantize="4bit", device=str(setting.device), dtype="bfloat16")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bitsandbytes and what it brings along
            draft = load_torch_model(path, "1.1B", options)
    loading = setting.peak_bytes()
    models = [setting.model(setting.packed("7B")), draft]
    setting.peak_bytes()
    length = 64 if setting.tiny else 4096 - 8
    caches = [model.new_cache() for model in models]
    for model, cache in zip(models, caches, strict=True):
        model.forward([TokenRun(cache, setting.text(length))])
        model.forward([TokenRun(cache, [5] * 8, num_logits=8)])
    peak = setting.peak_bytes()
    rows: list[list[object]] = [
        ["loading the 1.1B from its folder", loading / 1e9],
        ["both, at 4k tokens of context", peak / 1e9],
    ]
    verdict = Verdict("7B and 1.1B in 4 bits, 4k context: below 8 GB", f"{peak / 1e9:.2f} GB", peak < 8e9)
    return Found("Allocated on the device.", ["7B + 1.1B in 4 bits", "peak, GB"], rows, [verdict])


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
    setting: Setting,
    model: TorchModel,
    drafter: ModelDrafter | None = None,
    k: int = 1,
    *,
    prompt: Sequence[int] | None = None,
    tokens: int | None = None,
    repeats: int = 3,
) -> tuple[float, list[int]]:
    """(tokens a second after the first one, the best of some runs; the tokens), greedily."""
    params = SamplingParams(greedy=True, max_new_tokens=tokens or setting.tokens, ignore_eos=True, seed=0)
    request = Request(prompt_ids=tuple(prompt or setting.prompt), sampling=params)
    best, text = 0.0, []
    for _ in range(repeats):
        session = drafter.start(request, "coupled") if drafter is not None else None
        rounds = generate(model, model.new_cache(), request, session=session, policy=FixedLength(k))
        text = list(next(rounds).token_ids)
        began = time.perf_counter()
        for written in rounds:
            text += written.token_ids
        best = max(best, (len(text) - 1) / (time.perf_counter() - began))
    return best, text


def _assisted_speed(setting: Setting, target: Any, draft: Any, k: int) -> float:
    """That of ``transformers`` with a draft of always k tokens."""
    config = draft.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = k, "constant"
    config.assistant_confidence_threshold = 0.0
    return _reference_speed(setting, target, assistant_model=draft)


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


def draft_run(cache: Any, k: int) -> DraftRun:
    """A draft of k tokens, no more and no fewer."""
    return DraftRun(cache, [7], k, GREEDY, lambda _: True)


def _draft_seconds(setting: Setting, model: TorchModel, k: int) -> float:
    """What a draft of k tokens takes."""
    cache = model.new_cache()
    model.forward([TokenRun(cache, setting.prompt)])
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        model.draft([draft_run(cache, k)])
        seconds.append(time.perf_counter() - began)
        cache.truncate(len(setting.prompt))
    return median(seconds[4:])


def _tokens_a_round(right: Sequence[bool], k: int) -> float:
    """Tokens of a round of k draft tokens, bonus included: counted along the script, as its draws are few."""
    place = rounds = 0
    while place < len(right) - k:
        accepted = next((i for i in range(k) if not right[place + i]), k)
        place, rounds = place + accepted + 1, rounds + 1
    return place / rounds
