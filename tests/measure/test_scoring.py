"""Scores of given texts, and what lm-eval is told: against one forward for each text, and by tasks of lm-eval."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.cli import main
from draftsmith.engine import LLM, LoadedModel
from draftsmith.errors import UsageError
from draftsmith.measure.document import as_markdown
from draftsmith.measure.lm_eval_model import EvalModel, lm_eval_model, sampling_of
from draftsmith.measure.origin import measurement_origin
from draftsmith.measure.report import report_page
from draftsmith.measure.scoring import Scorer, rolling_windows
from draftsmith.model.protocol import TokenRun
from tests.support.fakes import EOS, byte_tokenizer, fake_target
from tests.support.schemas import check_schema
from tests.support.shared_fakes import SharedFakeModel
from tests.support.tiny import tiny_folder

HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: OUTPUT
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
"""


@dataclass(frozen=True)
class Asked:
    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(tiny_folder(tmp_path_factory.mktemp("tiny") / "target"), "none")


def direct(llm: LLM, context: tuple[int, ...], continuation: tuple[int, ...]) -> tuple[float, bool]:
    """In one forward of its own, in float64."""
    text = [*context, *continuation]
    model = llm.target.model
    [rows] = model.forward([TokenRun(model.new_cache(len(text)), text, num_logits=len(text))])
    rows = rows[len(context) - 1 : -1].astype(np.float64)
    logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    total = float(logprobs[np.arange(len(continuation)), list(continuation)].sum())
    return total, bool((rows.argmax(axis=1) == continuation).all())


def test_scores_are_those_of_one_forward_each(tiny: LLM) -> None:
    """Contexts that many share, that nobody shares, that are longer than a block; continuations of all lengths."""
    rng = np.random.default_rng(3)
    shared = tuple(rng.integers(5, 250, 150).tolist())
    pairs = [(shared, tuple(rng.integers(5, 250, length).tolist())) for length in (1, 2, 9, 100)]
    pairs += [(shared[:cut], (7, 8)) for cut in (1, 64, 65, 149)]
    pairs += [(tuple(rng.integers(5, 250, length).tolist()), (9,)) for length in (1, 70)]
    best = tiny.generate([shared], sampling_of({"max_gen_toks": 3}))[0].token_ids
    pairs += [(shared, best), (shared, ())]
    found = Scorer(tiny).score(pairs)
    for pair, scored in zip(pairs[:-1], found, strict=False):
        logprob, greedy = direct(tiny, *pair)
        assert scored.logprob == pytest.approx(logprob, abs=1e-4)
        assert scored.greedy == greedy
    assert found[-2].greedy
    assert (found[-1].logprob, found[-1].greedy) == (0.0, True)


def test_what_is_shared_is_read_once() -> None:
    """The last token of the context is read for each continuation: its logits tell of their first tokens."""
    model = SharedFakeModel()
    context = tuple(b"abcdefgh" * 30)
    endings = [(context, tuple(ending)) for ending in (b"gh", b"ab", b"hh")]
    Scorer(LLM(LoadedModel("fake", model, byte_tokenizer()), "none")).score(endings)
    assert model.tokens_read == len(context) - 1 + 3 * (1 + 2)


def test_long_contexts_lose_their_beginning(tiny: LLM) -> None:
    scorer = Scorer(tiny)
    long = tuple(i % 200 + 5 for i in range(2 * scorer.max_tokens))
    [cut] = scorer.score([(long, (7, 8))])
    assert cut == scorer.score([(long[-(scorer.max_tokens - 2) :], (7, 8))])[0]
    with pytest.raises(UsageError, match="has room for"):
        scorer.score([((5,), long)])
    with pytest.raises(UsageError, match="has no token"):
        scorer.score([((), (5,))])


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9, 10, 13])
def test_every_token_of_a_long_text_is_predicted_once(count: int) -> None:
    ids = tuple(range(100, 100 + count))
    windows = rolling_windows(ids, 1, 6)
    assert [token for _, predicted in windows for token in predicted] == list(ids)
    for place, (before, predicted) in enumerate(windows):
        assert len(before) + len(predicted) <= 6
        text = (1, *ids)
        end = text.index(predicted[-1]) + 1
        assert (*before, *predicted) == text[end - len(before) - len(predicted) : end]
        assert len(before) + len(predicted) == 6 or (place == 0 and count < 5)


def test_texts_become_pairs_as_lm_eval_has_them() -> None:
    model = EvalModel(LLM(fake_target(), "none"))
    assert model.pair("ab", " cd") == (tuple(b"ab"), tuple(b" cd"))
    assert model.pair("ab  ", "cd") == (tuple(b"ab"), tuple(b"  cd"))
    assert model.pair("", "cd") == ((EOS,), tuple(b"cd"))
    [rolled] = model.loglikelihood_rolling([Asked(("abc",))])
    [(scored, _)] = model.loglikelihood([Asked(("", "abc"))])
    assert rolled == pytest.approx(scored)
    assert math.exp(rolled) < 1


def test_replies_end_at_their_stop_strings() -> None:
    model = EvalModel(LLM(fake_target(), "lookup", num_draft_tokens=3))
    [whole, short] = model.generate_until(
        [Asked(("abc", {"until": [], "max_gen_toks": 40})), Asked(("abc", {"until": ["\n"], "max_gen_toks": 40}))]
    )
    assert len(whole) == 40
    assert short == whole.split("\n", maxsplit=1)[0]
    assert model.apply_chat_template([{"role": "user", "content": "hi"}]).endswith("<|im_start|>assistant\n")
    assert sampling_of({"temperature": 0.5, "do_sample": True}).temperature == 0.5
    assert sampling_of({"temperature": 0.0, "do_sample": True}).greedy
    assert sampling_of({"do_sample": False, "temperature": 0.7}).greedy
    for settings in ({"num_beams": 4}, {"penalty_alpha": 0.6}):
        with pytest.raises(UsageError, match="does not do"):
            sampling_of(settings)


def test_tasks_without_lm_eval_are_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftsmith.measure.lm_eval_model.find_spec", lambda _: None)
    assert main(("eval", "--task", "arc_easy")) == 2
    assert "pip install 'draftsmith[lm-eval]'" in capsys.readouterr().err
    assert main(("eval", "--task-chat")) == 2


def test_results_are_shown() -> None:
    origin = measurement_origin({}, {}, None)
    one = {"version": 1.0, "num_fewshot": 0, "questions": 3, "metrics": {"acc": 0.5}, "standard_errors": {"acc": 0.1}}
    page = report_page([("eval.json", {"tasks": {"lm_eval": {"colours": one}}, "provenance": origin})])
    assert "colours" in as_markdown(page)


@pytest.mark.skipif(not HAS_LM_EVAL, reason="lm-eval is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("output", ["multiple_choice", "generate_until", "loglikelihood"])
def test_a_local_task_of_lm_eval(
    output: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"question": f"Colour {i} is", "choices": ["red", "green"], "answer": "red"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = TASK.replace("DATA", str(tmp_path / "rows.jsonl")).replace("OUTPUT", output)
    if output == "multiple_choice":
        text = text.replace('doc_to_target: "{{answer}}"', 'doc_to_target: 0\ndoc_to_choice: "{{choices}}"')
    if output == "generate_until":
        text += 'generation_kwargs: {until: ["\\n"], max_gen_toks: 5}\n'
    (tmp_path / "colours.yaml").write_text(text)
    target = str(tiny_folder(tmp_path / "target"))
    options = ("--target", target, "--draft", "none", "--task", "colours", "--task-folder", str(tmp_path))
    assert main(("eval", *options, "--limit", "3", "--json")) == 0
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    check_schema(value, "eval")
    found = value["tasks"]["lm_eval"]["colours"]
    assert found["questions"] == 3
    assert found["metrics"]
    if output == "multiple_choice":
        model = lm_eval_model(LLM(target, "none"))
        asked = [Asked((row["question"], f" {choice}")) for row in rows[:3] for choice in row["choices"]]
        scores = [logprob for logprob, _ in model.loglikelihood(asked)]
        right = [scores[i] > scores[i + 1] for i in range(0, 6, 2)]
        assert found["metrics"]["acc"] == pytest.approx(sum(right) / 3)
