"""plan --for: other engines' costs as they are given or timed, and what is then recommended and started."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.cli import main
from draftsmith.cli.plan_for import launch_of
from draftsmith.engine import LLM
from draftsmith.errors import UsageError
from draftsmith.measure.endpoint import find_endpoint
from draftsmith.measure.engine_costs import EngineCosts, measure_endpoint_costs, parse_costs, read_costs
from draftsmith.measure.planning import make_plan, plan_json, plan_text
from draftsmith.measure.prompts import PromptItem
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.types import SamplingParams
from tests.support.fakes import FakeModel, fake_target
from tests.support.schemas import check_schema
from tests.support.serving import running
from tests.support.tiny import tiny_folder

GREEDY = SamplingParams(greedy=True, max_new_tokens=50)
ITEMS = (PromptItem("a", "x", ("abc", "more")), PromptItem("b", "x", ("gh gh gh",)))


def test_costs_are_read_from_options_and_files(tmp_path: Path) -> None:
    told = parse_costs(["c=0.1", "v=1:1,4:1.05,8:1.2", "c:small.gguf=0.05", "d=0.02", "c:a=b=0.3"])
    assert told == EngineCosts({1: 1.0, 4: 1.05, 8: 1.2}, 0.1, 0.02, {"small.gguf": 0.05, "a=b": 0.3})
    assert parse_costs(["v=4:1.5"]).verify == {1: 1.0, 4: 1.5}
    table = {"c": 0.2, "v": {"1": 1, "8": 2}, "candidates": {"x": 0.4}}
    as_json, as_toml = tmp_path / "costs.json", tmp_path / "costs.toml"
    as_json.write_text(json.dumps(table))
    as_toml.write_text("c = 0.2\nv = {1 = 1, 8 = 2}\n[candidates]\nx = 0.4\n")
    assert read_costs(as_json) == read_costs(as_toml) == EngineCosts({1: 1.0, 8: 2.0}, 0.2, 0.0, {"x": 0.4})
    both = told.over(read_costs(as_toml))
    assert (both.draft, both.verify[8], both.by_candidate["x"]) == (0.1, 1.2, 0.4)
    curves = told.curves("small.gguf", drafts=True)
    assert curves.round_cost(3) == pytest.approx(0.02 + 3 * 0.05 + 1.05)
    assert told.curves("lookup", drafts=False).round_cost(3) == pytest.approx(1.05)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("c", "write it as"),
        ("x=1", "has 'x'; it can have"),
        ("c=fast", "c = 'fast'; give a number"),
        ("c=nan", "give a number"),
        ("v=4", "v = ''"),
        ("v=0:1", "v of '0' tokens"),
        ("v=1:2,4:3", r"v\(1\) = 2; costs are in plain steps"),
        ("v=4:0", "v that is 0"),
    ],
)
def test_costs_that_cannot_be_are_refused(entry: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_costs([entry])


def test_missing_costs_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --cost v="):
        parse_costs(["c=0.1"]).curves("x", drafts=True)
    with pytest.raises(UsageError, match="a draft step of x is not known"):
        parse_costs(["v=4:1.1"]).curves("x", drafts=True)
    (tmp_path / "bad.toml").write_text("c 0.1")
    with pytest.raises(UsageError, match="neither TOML nor JSON"):
        read_costs(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("c = 1" + "0" * 400)  # more than any float
    with pytest.raises(UsageError, match="give a number of plain steps"):
        read_costs(tmp_path / "bad.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_costs(tmp_path / "none.toml")


def test_the_costs_decide_and_nothing_is_timed_here() -> None:
    """The same texts and drafts: where checking is free they pay, where it costs as much as writing they do not."""
    target = LLM(fake_target(), "none")
    cheap = make_plan(target, [fake_target("same")], ITEMS, GREEDY, costs=parse_costs(["c=0.05", "v=16:1.1"]))
    assert (cheap.best is not None, cheap.candidates[0].gain, cheap.candidates[0].forecast.num_draft_tokens) == (
        True,
        None,
        16,
    )
    value = plan_json(cheap, {})
    assert value["recommendation"]["advice"].startswith("Use same with 16 draft tokens: expect ")
    dear = make_plan(target, [fake_target("same")], ITEMS, GREEDY, costs=parse_costs(["c=0.9", "v=16:16"]))
    assert dear.best is None
    assert "would not pay" in plan_text(plan_json(dear, {}))


class Batched(FakeModel):
    """A forward takes 4 ms, and 3 ms more for every run after the first: v(4) = 3.25, less what a busy machine adds."""

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        import time

        time.sleep(4e-3 + 3e-3 * (len(runs) - 1))
        return super().forward(runs)


def test_costs_are_timed_at_endpoints() -> None:
    with running(Batched(), draft=False) as server, running(FakeModel(), draft=False) as fast:
        target, draft = (find_endpoint(f"http://127.0.0.1:{one.port}") for one in (server, fast))
        found = measure_endpoint_costs(target, draft, sizes=(1, 4), repeats=1)
    assert found.verify[1] == 1
    assert 1.3 < found.verify[4] < 5
    assert found.draft is not None
    assert 0 < found.draft < 0.8
    assert 4e-3 < found.plain_s < 40e-3


def test_commands_that_start_engines(tmp_path: Path) -> None:
    target, draft = str(tiny_folder(tmp_path / "t")), str(tiny_folder(tmp_path / "d", seed=1))
    [vllm] = launch_of("vllm", target, draft, 5)["commands"]
    assert vllm.startswith(f"vllm serve {target} --speculative-config '{{")
    assert '"num_speculative_tokens": 5' in vllm
    [sglang] = launch_of("sglang", target, draft, 5)["commands"]
    assert "--speculative-num-steps 5 --speculative-eagle-topk 1 --speculative-num-draft-tokens 6" in sglang
    export, start = launch_of("llama.cpp", target, draft, 5)["commands"]
    assert export.startswith("draftsmith export llama.cpp ")
    assert export.endswith("--num-draft-tokens 5 --copy-target")
    assert start == "sh pair/launch.sh"
    assert launch_of("vllm", target, "none", 0) == {"commands": [f"vllm serve {target}"], "notes": []}
    assert '"method": "ngram"' in launch_of("vllm", target, "lookup", 3)["commands"][0]
    assert "--speculative-algorithm NGRAM" in launch_of("sglang", target, "lookup", 3)["commands"][0]
    assert "--spec-ngram-simple-size-m 3" in launch_of("llama.cpp", target, "lookup", 3)["commands"][0]
    refused = launch_of("vllm", target, "embedded", 4)
    assert refused == {"commands": [], "notes": ["vllm has no drafter such as embedded; choose another candidate"]}


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target, draft = str(tiny_folder(tmp_path / "t")), str(tiny_folder(tmp_path / "d", seed=1))
    common = ("plan", "--target", target, "--candidate", draft, "--limit", "1", "--max-new-tokens", "8")
    costs = ("--for", "vllm", "--cost", "c=0.01", "--cost", "v=1:1,16:1.01")
    assert main((*common, *costs, "--json")) == 0
    value = json.loads(capsys.readouterr().out)
    check_schema(value, "plan")
    assert value["for"]["engine"] == "vllm"
    assert value["recommendation"]["measured_speedup"] is None
    assert main((*common, *costs)) == 0
    out = capsys.readouterr().out
    assert "Start vllm with:\n  vllm serve " in out
    for wrong in (("--for", "mlx"), ("--for", "vllm"), ("--cost", "c=1"), ("--for", "vllm", "--draft-endpoint", "x")):
        assert main((*common, *wrong)) == 2
