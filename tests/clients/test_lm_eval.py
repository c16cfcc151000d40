"""lm-eval against the server and against the engine in this process: the same scores, to the last bit."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LLM
from draftsmith.types import SamplingParams
from tests.support.serving import Running

lm_eval = pytest.importorskip("lm_eval")
TemplateLM: Any = pytest.importorskip("lm_eval.api.model").TemplateLM
LocalCompletionsAPI: Any = pytest.importorskip("lm_eval.models.openai_completions").LocalCompletionsAPI

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima"}
MAX_TOKENS = 24
CHOICE: dict[str, Any] = {
    "task": "capitals_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WRITE: dict[str, Any] = {
    "task": "capitals_write",
    "output_type": "generate_until",
    "doc_to_text": "The capital of {{country}} is",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": [".", ",", "\n"], "max_gen_toks": MAX_TOKENS, "temperature": 0.0},
    "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}],
}


class InProcess(TemplateLM):  # type: ignore[misc]
    """The target alone, without a drafter or a server."""

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self._llm = llm

    @property
    def eot_token_id(self) -> int:
        return self._llm.tokenizer.eos_ids[0]

    def tok_encode(self, string: str, **_options: Any) -> list[int]:
        return list(self._llm.tokenizer.encode(string, add_bos=False))

    def _loglikelihood_tokens(self, requests: Any, **_options: Any) -> list[tuple[float, bool]]:
        """By greedy replies that a bias forces to say the continuation: another way than the server's."""
        scores = []
        for _, context, continuation in requests:
            total, greedy = 0.0, True
            for place, token_id in enumerate(continuation):
                params = SamplingParams(greedy=True, max_new_tokens=1, logprobs=1, logit_bias={token_id: 1e6})
                [reply] = self._llm.generate([*context, *continuation[:place]], params)
                [told] = reply.logprobs or ()
                assert told.token_id == token_id
                total += told.logprob
                greedy = greedy and told.top[0][0] == token_id
            scores.append((total, greedy))
        return scores

    def loglikelihood_rolling(self, requests: Any, **_options: Any) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, **_options: Any) -> list[str]:
        texts = []
        for request in requests:
            prompt, options = request.args
            params = SamplingParams(greedy=True, max_new_tokens=MAX_TOKENS, stop=tuple(options["until"]))
            texts += [one.text for one in self._llm.generate(self.tok_encode(prompt), params)]
        return texts


def tasks(folder: Path) -> list[Any]:
    """Two tasks over the same questions, from a file."""
    names = list(CAPITALS.values())
    rows = [
        {
            "country": country,
            "question": f"What is the capital of {country}?",
            "choices": [f" {names[(i + j) % len(names)]}" for j in range(4)],
            "answer": 0,
        }
        for i, country in enumerate(CAPITALS)
    ]
    file = folder / "capitals.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
    return [{**common, **CHOICE}, {**common, **WRITE}]


def evaluate(model: Any, folder: Path) -> tuple[Any, Any]:
    """The scores, and all that was said, item by item."""
    found = lm_eval.simple_evaluate(model=model, tasks=tasks(folder), bootstrap_iters=0, cache_requests=False)
    replies = {
        name: [(sample["doc_id"], sample["filtered_resps"]) for sample in samples]
        for name, samples in found["samples"].items()
    }
    return found["results"], replies


def test_a_generation_and_a_likelihood_task(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", os.environ.get("OPENAI_API_KEY", "none"))
    remote = LocalCompletionsAPI(
        base_url=server.address + "/v1/completions",
        model=server.loaded.model.name,
        tokenizer_backend="remote",
        num_concurrent=4,
        max_retries=1,
    )
    served, said = evaluate(remote, tmp_path)
    alone, written = evaluate(InProcess(LLM(draft="none", max_context=4096)), tmp_path)
    with capsys.disabled():
        for name in said:
            print(name, {key: value for key, value in served[name].items() if "," in key})
    assert said == written
    assert served == alone
    assert served["capitals_choice"]["acc,none"] > 0
    assert served["capitals_write"]["exact_match,none"] > 0
    assert all(reply[0] for _, reply in said["capitals_write"])
