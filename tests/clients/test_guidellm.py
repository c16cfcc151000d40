"""guidellm loads the server to the end of its run, and every request is completed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from tests.support.serving import Running

pytest.importorskip("loguru")  # guidellm itself is slow to import, and does not without it
pytest.importorskip("culsans")
pytestmark = pytest.mark.slow

PROMPTS = ("Write one sentence about the sea.", "Name three colours.", "What is two plus two?", "A haiku, please.")
NUM_REQUESTS = 24


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_run_of_guidellm(server: Running, tmp_path: Path, path: str) -> None:
    data, report = tmp_path / "prompts.jsonl", tmp_path / "report.json"
    data.write_text(
        "".join(json.dumps({"prompt": f"{i}. {PROMPTS[i % 4]}"}) + "\n" for i in range(NUM_REQUESTS)), encoding="utf-8"
    )
    backend = f"kind=openai_http,target={server.address},request_format={path}"
    command = [sys.executable, "-m", "guidellm", "run", "--backend", backend, "--data", f"kind=json_file,path={data}"]
    command += ["--profile", "kind=concurrent,streams=8", "--constraint", f"kind=max_requests,count={NUM_REQUESTS}"]
    command += ["--output", f"kind=json,path={report}", "--disable-console"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    [benchmark] = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (NUM_REQUESTS, 0)
    assert benchmark["metrics"]["output_token_count"]["successful"]["total_sum"] > NUM_REQUESTS
