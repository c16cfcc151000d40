"""What people see of a run: its speed, its share of the hardware's peak, its curves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from draftsmith.cli.train import _duration
from draftsmith.train.curves import PICTURE, Artist, _line, panels_of
from draftsmith.train.flops import Speed, peak_flops, step_flops


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_pytorch_counts(tied: bool) -> None:
    """The oracle counts the products that run; it takes all of the attention's square, of which we take half."""
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    ids = torch.arange(20)[None]
    with FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False).logits.sum().backward()
    attention = 3 * 2 * 2 * 2 * 4 * 8 * 20 * 20  # thrice (forward, backward), two products, two layers
    counted = counter.get_total_flops() - attention / 2
    # the embedding gets its gradient without a product, and RoPE's frequencies are a product of 4 x 20 numbers
    assert step_flops(model, [20]) == pytest.approx(counted, rel=0.01)
    assert step_flops(model, [20, 20]) == 2 * step_flops(model, [20])
    assert step_flops(model, [40]) > 2 * step_flops(model, [20])


def test_speed_is_told_without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("draftsmith.train.flops.peak_flops", lambda *_: 100.0)
    monkeypatch.setattr("draftsmith.train.flops.time.perf_counter", lambda: clock[0])
    speed = Speed(torch.device("cpu"), "float32", 2)
    clock[0] = 4.0
    speed.add(80, 400.0)
    with speed.paused():
        clock[0] = 1000.0
    assert speed.told(steps_left=3) == {"tokens_per_s": 20.0, "share_of_peak": 0.5, "eta_s": 12.0}
    speed.add(0, 1200.0)  # 400 a second: what was measured was not the peak
    assert speed.told(steps_left=3)["share_of_peak"] == 1.0


def test_the_peak_of_this_machine_is_measured() -> None:
    assert peak_flops(torch.device("cpu"), "float32") > 1e8


@pytest.mark.parametrize(("seconds", "said"), [(40, "40 s"), (600, "10 min"), (12_000, "3 h 20 min")])
def test_durations(seconds: float, said: str) -> None:
    assert _duration(seconds) == said


def test_what_scatters_has_its_running_mean_drawn_and_what_is_set_has_none() -> None:
    drawn: list[list[float]] = []

    def plot(_: object, values: list[float], **__: object) -> list[SimpleNamespace]:
        drawn.append(list(values))
        return [SimpleNamespace(get_color=lambda: "blue")]

    axes, values = SimpleNamespace(plot=plot), [float(i % 2) for i in range(40)]  # the mean is over two steps
    _line(axes, "", range(40), values, scatters=True)
    _line(axes, "", range(40), values, scatters=False)
    assert drawn == [values, [0.0] + [0.5] * 39, values]


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    records = [
        {"step": step, "loss": 3 / step, "gradient_norm": 1.0, "learning_rate": 1e-3} | (
            {"eval_loss": 4 / step, "eval_acceptance": step / 100} if step % 10 == 0 else {}
        )
        for step in range(1, 61)
    ]  # fmt: skip
    panels = panels_of(records)
    assert list(panels) == ["loss", "acceptance", "learning rate", "gradient norm"]
    assert panels["acceptance"] == [("sampled", [10, 20, 30, 40, 50, 60], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    artist = Artist("sft")
    artist.draw_sometimes(tmp_path)
    assert not (tmp_path / PICTURE).exists()  # a minute has not passed
    artist.draw(tmp_path)
    from matplotlib.image import imread

    pixels = imread(tmp_path / PICTURE)
    assert pixels.shape[:2] == (680, 1200)
    assert len({tuple(pixel) for row in pixels[::7, ::7] for pixel in row.round(2).tolist()}) > 5


def test_only_the_learning_rate_is_drawn_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, bool]] = []

    def line(*args: Any, scatters: bool) -> None:
        drawn.append((args[3][0], scatters))
        _line(*args, scatters=scatters)

    monkeypatch.setattr("draftsmith.train.curves._line", line)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "learning_rate": 0.5, "gradient_norm": 3.0}\n')
    Artist("sft").draw(tmp_path)
    assert drawn == [(2.0, True), (0.5, False), (3.0, True)]


def test_without_matplotlib_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    monkeypatch.setattr("draftsmith.train.curves.find_spec", lambda _: None)
    Artist("sft").draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
