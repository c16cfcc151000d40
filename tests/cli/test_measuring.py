"""bench, certify, eval and plan as commands: their objects, pages and exit codes, on a tiny real model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.cli import main
from draftsmith.types import SamplingParams
from tests.support.schemas import check_schema
from tests.support.tiny import tiny_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(tiny_folder(folder / "target")), str(tiny_folder(folder / "draft", seed=1))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"id": name, "category": name[0], "turns": ["abc " + name, "more"]} for name in ("a1", "a2", "b1")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(args)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_bench_prints_its_object(
    capsys: pytest.CaptureFixture[str], models: tuple[str, str], prompts: str, tmp_path: Path
) -> None:
    target, draft = models
    file = tmp_path / "bench.json"
    options = ("--target", target, "--draft", draft, "--prompts", prompts, "--max-new-tokens", "20")
    code, out, err = run(capsys, "bench", *options, "--per-category", "1", "--json", "--output", str(file))
    assert (code, err) == (0, "")
    value = json.loads(out)
    check_schema(value, "bench")
    check_schema(json.loads(file.read_text()), "bench")
    assert (value["prompts"], value["tokens"], value["identical"]) == (2, 80, True)
    assert value["provenance"]["weights_sha256"]["target"].keys() >= {"model.safetensors", "config.json"}
    assert list(value["provenance"]["files"]) == ["prompts.jsonl"]


def test_bench_takes_rounds_apart(capsys: pytest.CaptureFixture[str], models: tuple[str, str], prompts: str) -> None:
    options = ("--target", models[0], "--draft", models[1], "--prompts", prompts, "--max-new-tokens", "12")
    code, out, err = run(capsys, "bench", *options, "--limit", "1", "--profile", "--json")
    assert (code, err) == (0, "")
    value = json.loads(out)
    check_schema(value, "bench")
    profile = value["profile"]
    assert sum(part["seconds"] for part in profile["parts"]) == pytest.approx(profile["wall_s"])
    assert run(capsys, "bench", "--profile", "--endpoint", "http://127.0.0.1:1")[0] == 2


def test_bench_prints_tables(capsys: pytest.CaptureFixture[str], models: tuple[str, str], prompts: str) -> None:
    code, out, err = run(
        capsys, "bench", "--target", models[0], "--prompts", prompts, "--limit", "1", "--max-new-tokens", "12"
    )
    assert (code, err) == (0, "")
    assert "| all | 1 |" in out
    assert "Acceptance: accepted / draft tokens." in out


def test_certify_prints_its_object_and_writes_its_page(
    capsys: pytest.CaptureFixture[str], models: tuple[str, str], prompts: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    options = ("--target", models[0], "--draft", models[1], "--prompts", prompts, "--max-new-tokens", "12")
    few = ("--samples", "20", "--sample-prompts", "1", "--sample-tokens", "4")
    code, out, err = run(capsys, "certify", *options, *few, "--json", "--page", str(page))
    assert (code, err) == (0, "")
    value = json.loads(out)
    check_schema(value, "certify")
    assert value["verdict"] == "identical"
    assert value["sampled"]["num_draft_tokens"] > 0
    assert "Verdict: identical." in page.read_text()


def test_certify_fails_when_texts_differ(
    capsys: pytest.CaptureFixture[str], models: tuple[str, str], prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from draftsmith.speculate.verify import _JUDGES

    monkeypatch.setitem(_JUDGES, "coupled", lambda token_id, *_: token_id)  # believes every draft token
    options = ("--target", models[0], "--draft", models[1], "--prompts", prompts, "--max-new-tokens", "12")
    code, out, err = run(capsys, "certify", *options, "--samples", "20", "--sample-prompts", "1", "--limit", "1")
    assert (code, err) == (1, "")
    assert "Verdict: differs: 2 of 2 greedy replies differ" in out


def test_eval_runs_all_its_tasks(
    capsys: pytest.CaptureFixture[str], models: tuple[str, str], prompts: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc def " * 40)
    names = ("perplexity", "passkey", "needle", "variables", "words", "format", "acceptance")
    tasks = (*names, "--text", str(text), "--context", "128", "--system", "Be brief.")
    grid = ("--lengths", "400", "--depths", "0,1", "--trials", "1", "--prompts", prompts, "--max-new-tokens", "8")
    code, out, err = run(capsys, "eval", *tasks, *grid, "--target", models[0], "--json")
    assert (code, err) == (0, "")
    value = json.loads(out)
    check_schema(value, "eval")
    assert list(value["tasks"]) == list(names)
    code, out, err = run(capsys, "eval", "needle", *grid, "--target", models[0])
    assert (code, err) == (0, "")
    assert "## needle" in out
    assert "| 100% | 0/1 |" in out


def test_replies_are_judged_at_the_temperature_asked_for(
    capsys: pytest.CaptureFixture[str],
    models: tuple[str, str],
    prompts: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from draftsmith.measure import adherence

    asked: list[SamplingParams] = []

    def measured(_: object, items: object, sampling: SamplingParams, **__: object) -> tuple[adherence.TurnRow, ...]:
        del items
        asked.append(sampling)
        return (adherence.TurnRow(1, replies=1, kept=1),)

    monkeypatch.setattr(adherence, "measure_adherence", measured)
    options = ("format", "--target", models[0], "--prompts", prompts, "--max-new-tokens", "8", "--seed", "3")
    for given, temperature in (((), 0.0), (("--format-temperature", "0.7"), 0.7)):
        code, out, _ = run(capsys, "eval", *options, *given, "--json")
        assert code == 0
        assert json.loads(out)["tasks"]["format"]["temperature"] == temperature
    assert asked == [SamplingParams(temperature=t, seed=3, max_new_tokens=8) for t in (0.0, 0.7)]
    code, _, err = run(capsys, "eval", *options, "--format-temperature", "-1")
    assert code == 2
    assert "--format-temperature is -1.0; give 0, which is greedy, or more" in err


def test_plan_gives_its_advice(capsys: pytest.CaptureFixture[str], models: tuple[str, str], prompts: str) -> None:
    options = ("--target", models[0], "--candidate", models[1], "--candidate", "lookup", "--max-new-tokens", "16")
    code, out, err = run(capsys, "plan", *options, "--prompts", prompts, "--limit", "1", "--json")
    assert (code, err) == (0, "")
    value = json.loads(out)
    check_schema(value, "plan")
    assert {candidate["draft"] for candidate in value["candidates"]} == {models[1], "lookup"}
    assert value["provenance"]["weights_sha256"]["target"]
    alone = ("--target", models[0], "--max-new-tokens", "16", "--prompts", prompts, "--limit", "1", "--json")
    code, out, err = run(capsys, "plan", *alone)
    assert (code, err) == (0, "")
    assert {candidate["draft"] for candidate in json.loads(out)["candidates"]} == {"lookup", "suffix"}


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device that is always full")
def test_a_result_that_finds_no_space_is_told(
    capsys: pytest.CaptureFixture[str], models: tuple[str, str], prompts: str
) -> None:
    options = (
        "--target",
        models[0],
        "--draft",
        "lookup",
        "--prompts",
        prompts,
        "--limit",
        "1",
        "--max-new-tokens",
        "4",
    )
    code, out, err = run(capsys, "bench", *options, "--output", "/dev/full", "--quiet")
    assert (code, out) == (1, "")
    assert "there is no space left to write /dev/full" in err
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("bench", "--draft", "none"), "nothing to compare"),
        (("bench", "--output", "/no/such/folder/x.json"), "that folder does not exist"),
        (("plan", "--output", "/"), "which is a folder; name a file in it"),
        (("bench", "--limit", "0"), "limit is 0"),
        (("certify", "--page", "x.pdf"), "ends in .html or .md"),
        (("certify", "--temperature", "0"), "which is greedy"),
        (("certify", "--prompts", "/no/such/file"), "cannot be read"),
        (("plan", "--num-draft-tokens", "4"), "chooses the draft length itself"),
        (("plan", "--rule", "rejection"), "forecasts the coupled rule"),
        (("eval", "colour"), "there is no task 'colour'"),
        (("eval", "perplexity"), "needs a text"),
        (("eval", "--lengths", "1,x"), "whole numbers with commas"),
    ],
)
def test_wrong_use_is_told_before_work(
    capsys: pytest.CaptureFixture[str], models: tuple[str, str], args: tuple[str, ...], said: str
) -> None:
    code, out, err = run(capsys, *args, "--target", models[0])
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
