"""Simon Willison's ``llm``: the endpoint command, a model of its configuration, a schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from tests.support.serving import Running

pytest.importorskip("llm")
pytestmark = pytest.mark.slow


def ask(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "LLM_USER_PATH": str(folder)}
    command = [sys.executable, "-m", "llm", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_endpoint_command_and_a_configured_model(server: Running, tmp_path: Path) -> None:
    address = server.address + "/v1"
    assert ask(tmp_path, "openai", "endpoint", address, "--models") == server.loaded.model.name
    prompt = ["Name three colours.", "-o", "temperature", "0", "-o", "max_tokens", "20"]
    first = ask(tmp_path, "openai", "endpoint", address, "-m", server.loaded.model.name, *prompt)
    assert first
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: here\n  model_name: {server.loaded.model.name}\n  api_base: {address}\n  supports_schema: true\n",
        encoding="utf-8",
    )
    assert ask(tmp_path, "-m", "here", "--key", "none", *prompt) == first
    assert ask(tmp_path, "-m", "here", "--key", "none", "--no-stream", *prompt) == first
    schema = {"type": "object", "properties": {"animal": {"enum": ["dog", "cat"]}}, "required": ["animal"]}
    said = ask(tmp_path, "-m", "here", "--key", "none", "--schema", json.dumps(schema), "Name an animal.")
    assert json.loads(said)["animal"] in ("dog", "cat")
