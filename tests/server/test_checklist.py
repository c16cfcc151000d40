"""Each item of docs/security-checklist.md has a test that exists, or a reason; and tests for items that had none."""

from __future__ import annotations

import ast
import hmac
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.server import guard
from draftsmith.server.options import ServerOptions
from tests.support.serving import PATIENCE, Reply, running
from tests.support.shared_fakes import SharedFakeModel

REPOSITORY = Path(__file__).parents[2]
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
RUNS_CODE = {"eval", "exec", "compile", "__import__"}


def rows() -> list[list[str]]:
    """The cells of every row of the page's tables."""
    page = (REPOSITORY / "docs" / "security-checklist.md").read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in cells] for cells in lines if cells[0].strip() not in ("item", "limit")]


def test_every_item_has_a_test_or_a_reason() -> None:
    known: dict[str, set[str]] = {}
    for file in (REPOSITORY / "tests").rglob("test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        known[str(file.relative_to(REPOSITORY / "tests"))] = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
    found = rows()
    assert len(found) > 40
    for item, where, evidence in found:
        assert item
        assert where
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", evidence)
        assert named or evidence.startswith("reason: "), item
        for file, test in named:
            assert test in known.get(file, ()), (item, file, test)


def test_code_that_is_named_is_there() -> None:
    for _, where, _ in rows():
        for path in re.findall(r"`([\w/]+\.(?:py|js|css|cpp))`", where):
            assert (REPOSITORY / "src" / "draftsmith" / path).exists(), path


def test_nothing_unpickles_and_no_text_is_run() -> None:
    for file in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & UNPICKLES, file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in RUNS_CODE, file
            if isinstance(node, ast.keyword) and node.arg in ("weights_only", "trust_remote_code"):
                assert not (isinstance(node.value, ast.Constant) and node.value.value is (node.arg[0] == "t")), file


def test_all_keys_are_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    whole = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return whole(one, other)

    monkeypatch.setattr("draftsmith.server.guard.hmac.compare_digest", watched)
    keys = tuple(f"a-key-of-some-length-{i}" for i in range(5))
    gate = guard.Guard(None, ServerOptions(api_keys=keys))  # type: ignore[arg-type]  # nothing is let through
    for key in (keys[0], keys[4], "another", ""):
        compared.clear()
        assert guard._known_key(f"Bearer {key}", gate._users) == (key in keys)
        assert len(compared) == len(keys)
        assert {len(part) for pair in compared for part in pair} == {32}


def test_health_answers_while_a_prompt_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    with running(SharedFakeModel()) as server:
        tokenizer = server.loaded.model.tokenizer

        def slow(*_arguments: Any, **_options: Any) -> list[int]:
            begun.set()
            assert go_on.wait(PATIENCE)
            return [97]

        monkeypatch.setattr(tokenizer, "encode", slow)
        replies: list[Reply] = []
        asking = threading.Thread(
            target=lambda: replies.append(server.call("POST", "/tokenize", {"prompt": "a" * 100_000}))
        )
        asking.start()
        assert begun.wait(PATIENCE)
        assert server.call("GET", "/health").status == 200
        assert replies == []
        go_on.set()
        asking.join(PATIENCE)
        assert replies[0].json["tokens"] == [97]


@pytest.mark.parametrize(
    "field", ["chat_template", "chat_template_kwargs", "prompt_embeds", "guided_regex", "lora_path", "functions"]
)
def test_what_could_bring_code_or_tensors_is_refused(field: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], field: "x"}
    with running(SharedFakeModel()) as server:
        reply = server.call("POST", "/v1/chat/completions", body)
    assert (reply.status, reply.json["error"]["param"]) == (400, field)


def test_nothing_is_fetched_for_a_message_or_a_schema() -> None:
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    schema = {"$ref": "http://127.0.0.1:9/schema.json"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with running(SharedFakeModel()) as server:
        for fields in (
            {"messages": [{"role": "user", "content": [image]}]},
            {"messages": [{"role": "user", "content": "a"}], "response_format": form},
        ):
            began = time.monotonic()
            assert server.call("POST", "/v1/chat/completions", fields).status == 400
            assert time.monotonic() - began < PATIENCE


def test_a_range_of_a_file_is_all_of_it() -> None:
    """Pieces of files are not served, however many are asked for."""
    with running(SharedFakeModel()) as server:
        whole = server.call("GET", "/static/chat.js")
        some = server.call("GET", "/static/chat.js", range="bytes=" + ",".join(f"{i}-{i + 1}" for i in range(1000)))
    assert (some.status, some.body) == (200, whole.body)


def test_all_options_at_once_with_a_draft() -> None:
    options = {
        "presence_penalty": 1.5,
        "frequency_penalty": -1.5,
        "repetition_penalty": 1.3,
        "logit_bias": {"97": 3, "98": -3},
        "min_p": 0.01,
        "top_k": 20,
        "top_p": 0.9,
        "temperature": 1.3,
        "logprobs": 3,
        "stop": ["hh"],
        "seed": 5,
        "max_tokens": 60,
    }
    with running(SharedFakeModel()) as server:
        drafted, plain = (
            server.call("POST", "/v1/completions", {"prompt": "abcabcabc", **options, "draft": draft}).json
            for draft in (True, False)
        )
        assert drafted["choices"] == plain["choices"]
        assert server.call("GET", "/ready").status == 200
