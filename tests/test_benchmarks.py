"""The measuring scripts compute what they say: perplexity, tables, pages without paths, a sentence for no peer."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from benchmarks import common, curves, experts, llama_cpp_peer, plan_accuracy, policy, vocabularies
from benchmarks.by_costs import ByCosts
from benchmarks.common import run_script
from benchmarks.perplexity import log_probabilities, python_reference
from draftsmith.engine.calibrate import StepCosts
from draftsmith.engine.loading import load_model
from draftsmith.engine.options import EngineOptions
from draftsmith.errors import UsageError
from draftsmith.measure import rounds
from draftsmith.measure.costs import CostCurves, measure_costs
from draftsmith.measure.prompts import PromptItem, read_prompts
from draftsmith.model.protocol import Model, TokenRun
from draftsmith.speculate import CostModel, RoundRecord, RoundTimes, Trace, compare_vocabularies, trace_json
from draftsmith.speculate.retokenize import ByteEncoder
from draftsmith.text import Tokenizer
from tests.support.made_tokenizers import corpus, llama_json, sentencepiece_model, training_lines
from tests.support.tiny import tiny_folder

OPTIONS = EngineOptions(threads=1)
SCRIPTS = (
    "batch",
    "curves",
    "decode",
    "drafters",
    "experts",
    "install_size",
    "limits",
    "load",
    "load_by_costs",
    "peers",
    "perplexity",
    "plan_accuracy",
    "policy",
    "startup",
    "vocabularies",
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_explains_itself(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert module.__doc__ is not None
    assert module.__doc__.splitlines()[0] in " ".join(capsys.readouterr().out.split())


def test_log_probabilities_are_those_of_the_softmax() -> None:
    logits = np.random.default_rng(7).normal(scale=30, size=(5, 11)).astype(np.float32)
    ids = [0, 10, 3, 3, 7]
    expected = log_softmax(logits.astype(np.float64), axis=-1)[np.arange(5), ids]
    np.testing.assert_allclose(log_probabilities(logits, ids), expected, rtol=1e-12)


def test_experts_on_paper() -> None:
    """By hand: 46.7 billion weights are known of Mixtral-8x7B, 12.9 of them for a token (both with the embedding)."""
    assert experts.MIXTRAL.total + 32000 * 4096 == pytest.approx(46.70e9, rel=1e-3)
    assert experts.MIXTRAL.read(1) + 32000 * 4096 == pytest.approx(12.88e9, rel=1e-3)
    assert experts.distinct_experts(8, 2, 1) == 2
    assert experts.distinct_experts(8, 2, 2) == 3.5
    assert experts.verify_cost(experts.MIXTRAL, 10**6) == pytest.approx(experts.MIXTRAL.total / experts.MIXTRAL.read(1))
    assert experts.speedup(experts.MIXTRAL, 0.0, 1.0, 1) == pytest.approx(2 / experts.verify_cost(experts.MIXTRAL, 2))


def test_a_narrow_model_of_experts_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "SIZES", (1, 3))
    shape = experts.Shape(layers=1, hidden=64, inner=64, kv=64, vocab=128)
    assert {size: seconds > 0 for size, seconds in experts.measured(shape, 1).items()} == {1: True, 3: True}


def test_the_default_text_is_long_enough() -> None:
    assert len(python_reference()) > 20_000 * 8


def test_table_lines_up() -> None:
    assert common.table(["name", "speed"], [["plain", 1.0], ["with a draft", 12.345]]).splitlines() == [
        "| name         | speed |",
        "| ------------ | ----: |",
        "| plain        |  1.00 |",
        "| with a draft | 12.35 |",
    ]


def test_result_is_the_last_line_and_a_page_without_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/decode.py", "--target", "/home/me/model.gguf"])
    (tmp_path / "docs" / "results").mkdir(parents=True)
    common.report("A title", ["| a |"], {"value": 3}, "name")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["value"] == 3
    assert last["provenance"]["cpus"] >= 1
    [page] = (tmp_path / "docs" / "results").iterdir()
    text = page.read_text(encoding="utf-8")
    assert "`python -m benchmarks.decode --target model.gguf`" in text
    assert "/home/me" not in text


def test_a_missing_peer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(common.PeerMissingError, match=r"llama\.cpp is not installed; .*GGML_NATIVE"):
        llama_cpp_peer.system_info()


def test_the_accuracy_of_plan_is_measured_in_pieces(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No seconds: one turn a call. The sweep has what the plan predicts, and a verdict comes when there is one."""
    folder, model = tmp_path / "runs", str(tiny_folder(tmp_path / "tiny"))
    arguments = [str(folder), "--target", model, "--candidate", "lookup", "--limit", "1", "--max-new-tokens", "12"]
    assert plan_accuracy.main([str(folder), "--summary"]) == 1
    said = []
    for _ in range(2):
        assert plan_accuracy.main([*arguments, "--lengths", "1,2", "--turns", "2", "--seconds", "0"]) == 0
        said.append(capsys.readouterr().out.splitlines()[-1])
    assert said[0].endswith("stopped before turn 2; the same command goes on")
    assert said[1].endswith("complete")
    assert plan_accuracy.main([str(folder), "--summary"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    [combination] = found["combinations"]
    assert combination["combination"] == "tiny--lookup--built-in"
    assert (len(combination["turns"]), combination["finals"]) == (2, 0)
    del combination
    more = [*arguments, "--lengths", "1,2", "--turns", "2", "--finals", "2", "--seconds"]
    assert plan_accuracy.main([*more, "0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("stopped before final 2; the same command goes on")
    assert plan_accuracy.main([*more, "99"]) == 0
    [kept] = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    assert [set(one) for one in kept["finals"]] == [{"0", "auto"} | (plan_accuracy.contenders(kept) & {"1", "2"})] * 2
    assert len(kept["passes"]) == 2
    capsys.readouterr()
    assert plan_accuracy.main([str(folder), "--summary"]) == 0
    [combination] = json.loads(capsys.readouterr().out.splitlines()[-1])["combinations"]
    assert (combination["finals"], combination["lost_ci95"]) == (2, None)
    with pytest.raises(UsageError, match="has finals already, which no turn can follow"):
        plan_accuracy.main([*arguments, "--turns", "3"])
    with pytest.raises(UsageError, match="finals are of the best ways of a turn"):
        plan_accuracy.main([str(tmp_path / "new"), *arguments[1:], "--turns", "0", "--finals", "1"])


def test_prompts_are_answered_between_the_moments_of_a_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two at a time of ten, all of them before the last moment begins."""
    order: list[str] = []
    answered, measured = plan_accuracy._in_turn, measure_costs

    def answer(ways: Any, item: PromptItem, *rest: Any) -> Any:
        order.append(item.id)
        return answered(ways, item, *rest)

    def measure(*args: Any, **options: Any) -> CostCurves:
        order.append("moment")
        return measured(*args, **options)

    monkeypatch.setattr(plan_accuracy, "_in_turn", answer)
    monkeypatch.setattr(rounds, "measure_costs", measure)
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{i}", "category": "any", "turns": [f"{i} abc abc abc"]} for i in range(10)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [str(tmp_path), "--target", str(tiny_folder(tmp_path / "tiny")), "--candidate", "lookup"]
    arguments += ["--prompts", str(prompts), "--per-category", "99", "--max-new-tokens", "6", "--lengths", "2"]
    assert plan_accuracy.main([*arguments, "--turns", "1", "--repeats", "1"]) == 0
    expected = ["p0"]
    for i in range(0, 10, 2):
        expected += [f"p{i}", f"p{i + 1}", "moment"]
    assert order == expected


def test_plans_are_judged_by_their_error_and_by_what_they_lose() -> None:
    # Plain 10 tokens/s; the median of three passes at k = 2 is 20, one of 5 and one of 40 do not count.
    seconds = {
        "0": (1.0, 1.0, 1.0),
        "1": (2 / 3, 2 / 3, 2 / 3),
        "2": (0.5, 2.0, 0.25),
        "4": (1 / 2.05,) * 3,
        "auto": (1 / 1.9,) * 3,
    }
    passes = [{k: {"x": (times[i], 10)} for k, times in seconds.items()} for i in range(3)]
    known: dict[str, Any] = {"combination": "a", "passes": passes, "plans": []}
    assert plan_accuracy.verdict(known) is None
    assert plan_accuracy.sweep(passes) == pytest.approx({"0": 1.0, "1": 1.5, "2": 2.0, "4": 2.05, "auto": 1.9})

    def judged(choice: str, *, low: float = 1.4, high: float = 2.1) -> tuple[object, ...]:
        plan = {"choice": choice, "predicted": {"1": low, "2": high, "3": 9.0, "4": low}, "measured": 1.8}
        known["plans"] = [{**plan, "measured_auto": 1.7}]
        found = plan_accuracy.verdict(known)
        assert found is not None
        [said] = found["turns"]
        assert (said["k"], found["best"]) == (2, "4")  # k = 3 was not measured
        assert said["told"] == {"k": 1.8, "auto": 1.7, "0": 1.0}[choice]
        assert said["given"] == pytest.approx({"k": 2.0, "auto": 1.9, "0": 1.0}[choice])
        assert found["error"] == pytest.approx(abs(high / 2 - 1))
        return said["choice"], pytest.approx(found["lost"]), found["good"], found["chosen_well"]

    assert judged("k") == ("2", 1 - 2 / 2.05, True, True)
    assert judged("auto") == ("auto", 1 - 1.9 / 2.05, True, False)
    assert judged("0", low=0.7, high=0.9) == ("0", 1 - 1 / 2.05, False, False)
    # Finals say what is best: the 4 was lucky. Of three passes the two quicker ones of each way count.
    times = {"0": (1.0, 1.0, 7.0), "2": (0.5, 0.5, 9.0), "4": (0.6, 0.7, 0.6), "auto": (0.54, 0.56, 0.56)}
    known["finals"] = [{k: {"x": (spent[i], 10)} for k, spent in times.items()} for i in range(3)]
    known["plans"] = [{"choice": "auto", "predicted": {"2": 2.0}, "measured": 1.8, "measured_auto": 1.7}]
    found = plan_accuracy.verdict(known)
    assert found is not None
    assert (found["best"], found["lost"]) == ("2", pytest.approx(1 - 0.5 / 0.55))
    assert found["error"] == pytest.approx(0.0)
    assert found["speedups"] == pytest.approx({"0": 1.0, "2": 2.0, "4": 1 / 0.6, "auto": 1 / 0.55})
    assert found["lost_ci95"] is None  # of three passes
    assert plan_accuracy.lost_interval(passes[:1] * 5, ["2", "auto", "1"]) == pytest.approx((1 - 1.9 / 2.05,) * 2)
    # The best is worth 2.05 to 4, with the passes that are drawn.
    assert plan_accuracy.lost_interval([*passes, *passes], ["1"]) == pytest.approx((1 - 1.5 / 2.05, 1 - 1.5 / 4))
    del known["finals"]
    # Who goes on: what a plan chose (k = 1 here), and what is within 8 % of 2.05 (auto with 1.9, but not 1.5).
    known["plans"] = [{"choice": "k", "predicted": {"1": 3.0, "2": 2.0}}]
    assert plan_accuracy.contenders(known) == {"1", "2", "4", "auto"}
    known["plans"] = [{"choice": "0", "predicted": {"1": 3.0, "2": 2.0}}]
    assert plan_accuracy.contenders(known) == {"0", "2", "4", "auto"}
    # Each prediction beside its own pass: 2.0, 0.5 and 4.0 at k = 2. Too low does not make up for too high.
    known["plans"] = [{"choice": "k", "predicted": {"2": high}} for high in (1.0, 0.51, 5.0)]
    found = plan_accuracy.verdict(known)
    assert found is not None
    assert found["error"] == pytest.approx(0.25)


def test_texts_keep_their_bytes_between_vocabularies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In small what the script does with the tokenizers of Llama 2 and Mistral and 10 MB of text."""
    (tmp_path / "target.json").write_bytes(llama_json("prepend"))
    (tmp_path / "draft.model").write_bytes(sentencepiece_model("unigram"))
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt.gz").write_bytes(gzip.compress("".join(corpus()[:400]).encode()))
    (texts / "b.jsonl").write_text(json.dumps({"turns": training_lines()[:200]}) + "\n")
    options = ["--target", str(tmp_path / "target.json"), "--draft", str(tmp_path / "draft.model"), str(texts)]
    assert vocabularies.main([*options, "--megabytes", "0.05"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 20_000 < result["bytes"] < 80_000
    assert [row["not lossless"] for row in result["rows"]] == [0, 0]
    assert all(row["documents"] > 5 and row["tokens"] > 5_000 for row in result["rows"])


def test_a_map_that_loses_a_byte_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    both = compare_vocabularies(Tokenizer.from_json(llama_json("prepend")), Tokenizer.from_json(llama_json("never")))
    text = "".join(training_lines()[:20])
    encoder = ByteEncoder(both.draft)
    dice = Random(0)  # noqa: S311 (a simulation)
    assert vocabularies.lossless(both, encoder, text, dice)[0]
    encode = ByteEncoder.encode
    monkeypatch.setattr(ByteEncoder, "encode", lambda self, data, **how: encode(self, data[:-1], **how))
    assert not vocabularies.lossless(both, encoder, text, dice)[0]


def test_curves_are_drawn_from_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tokens of every draft are right, so the curve ends at 2 and its best is not far from there."""
    rounds = [RoundRecord(0, 3 * i, (1,) * 4, (0.9,) * 4, False, (1, 1, 2), 2, 0.0, 0.1, 0.1) for i in range(1, 30)]
    path, picture = tmp_path / "two.json", tmp_path / "curves.png"
    path.write_text(json.dumps(trace_json(Trace("small", tuple(rounds), CostModel(0.2)), str)))
    assert curves.main(["--out", str(picture), str(path)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 100_000
    assert capsys.readouterr().out.split()[:4] == ["two", "best", "fixed", "2"]


def _greedy(model: Model) -> list[int]:
    """The likeliest tokens after each of a few."""
    return [int(row.argmax()) for row in model.forward([TokenRun(model.new_cache(), list(range(40, 60)), 20)])[0]]


def test_rounds_cost_what_they_cost_and_a_model_that_was_not_asked_has_to_read() -> None:
    """By hand, checks and drafts at twice what was told; a plain step takes half a second."""
    costs = ByCosts(StepCosts(0.5, CostModel(0.25, (1.0, 1.25, 1.5), 0.125, 0.5)), 2.0, unread=2)
    rounds = [  # tokens drafted, drawn and written; drafting and checking, in plain steps
        (0, 0, 1, 0.0, 1.0),
        (2, 0, 3, 0.0, 2.0),  # a copy
        (1, 1, 2, 2 * (0.5 + 0.25 + 6 * 0.125), 1.5),  # two of the prompt, one, three
        (2, 2, 1, 2 * (0.5 + 0.5), 2.0),
    ]
    total = 0.0
    for drafted, drawn, written, draft, check in rounds:
        told = costs.times(RoundTimes(drafted, drawn, 99.0, 99.0, apart=False))
        costs.wrote(written)
        assert (told.draft_s, told.check_s, told.apart) == (draft * 0.5, check * 0.5, True)
        total += draft + check
    assert costs.steps == total


def test_by_costs_two_runs_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = str(tiny_folder(tmp_path / "target")), str(tiny_folder(tmp_path / "draft", seed=1))
    prompts = tmp_path / "any.jsonl"
    prompts.write_text(json.dumps({"id": "f", "category": "any", "turns": ["abc abc abc"]}) + "\n")
    options = ["--target", target, "--prompts", str(prompts), "--lengths", "2", "--repeat", "1"]
    options += ["--draft", draft, "--draft", "lookup", "--draft", f"{draft}+lookup", "--max-new-tokens", "20"]
    results = []
    for _ in range(2):
        assert policy.main([*options, "--by-costs", "1.5"]) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert results[0]["rows"] == results[1]["rows"]
    assert results[0]["by_costs"] == 1.5
    assert len({json.dumps(costs["v"]) for costs in results[0]["costs"].values()}) == 1
    assert len({results[0]["costs"][name]["c"] for name in ("draft", "draft+lookup")}) == 1


def test_policies_take_turns_and_are_judged_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = str(tiny_folder(tmp_path / "target")), str(tiny_folder(tmp_path / "draft", seed=1))
    prompts = tmp_path / "code.jsonl"
    item = {"id": "f", "category": "code", "turns": ["Complete.\n\ndef f(x):"], "reference": "    return x"}
    prompts.write_text(json.dumps(item) + "\n")
    rounds = tmp_path / "rounds.json"
    drafts = [draft, "lookup", f"{draft}+lookup", f"shuffled:{target}"]
    options = ["--target", target, "--prompts", str(prompts), "--edits", str(prompts), "--rounds", str(rounds)]
    options += ["--lengths", "2", "--repeat", "2", "--max-new-tokens", "20"]
    assert policy.main([*options, *(word for name in drafts for word in ("--draft", name))]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["identical"]
    names = ["draft", "lookup", "draft+lookup", "shuffled target"]
    assert [row["draft"] for row in result["rows"] if row["prompts"] == "edits"] == names
    assert {row["best fixed"] for row in result["rows"]} == {"2"}
    assert [row["prompts"] for row in result["mixes"]] == ["code", "edits", "all"]
    found = json.loads(rounds.read_text())
    assert {len(replies) for prompt in found for replies in prompt["replies"].values()} == {2}
    knows, shuffled = (
        _greedy(model.model) for model in (load_model(target, OPTIONS), policy.load_shuffled(target, OPTIONS))
    )
    assert knows != shuffled
    [asked] = policy.edits(read_prompts(prompts))
    assert "def f(x):\n    return x\n```" in asked.turns[0]


def test_shares_are_of_the_median_times() -> None:
    def replies(*seconds: float) -> list[policy.Reply]:
        return [policy.Reply(tuple(range(40)), s, ((2, 2, 1),), ()) for s in seconds]

    prompts = [
        policy.Prompt("a", "1", {"plain": replies(3, 9, 2), "lookup auto": replies(1, 1, 8)}),
        policy.Prompt("a", "2", {"plain": replies(1, 1, 1), "lookup auto": replies(2, 2, 2)}),
    ]
    row = policy.row(prompts, "lookup auto", {"lookup 2": 1.5, "lookup 4": 1.2})
    assert row["auto"] == pytest.approx(4 / 3)
    assert (row["best fixed"], row["slowest"]) == ("2", 0.5)
    assert row["auto / best"] == pytest.approx(8 / 9, abs=1e-3)
    assert (row["tokens a round"], row["acceptance"]) == (2, 0.5)


def test_what_a_user_can_mend_gets_a_sentence_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> int:
        return len(Path("not-there.json").read_text())

    def refused() -> int:
        raise UsageError("the length is 0; it must be at least 1")

    for main, code, told in (
        (missing, 1, "not-there.json cannot be used: No such file"),
        (refused, 2, "the length is 0"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_script(main)
        assert ended.value.code == code
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: None)
    assert ended.value.code == 0
