"""Bodies made from the OpenAPI document, good ones and bad ones: every answer is as the document says.

DRAFTSMITH_TEST_EXAMPLES=200 makes so many of each kind for each operation; the suite takes a few.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

sys.path.append(str(Path(__file__).parents[2]))
from tests.support.fakes import TOOL_TEMPLATE
from tests.support.serving import running
from tests.support.shared_fakes import SharedFakeModel

EXAMPLES = int(os.environ.get("DRAFTSMITH_TEST_EXAMPLES", "5"))
MODES = ("positive", "negative")  # whatever a path's name is, it is a good one
OPERATIONS = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /tokenize",
    "POST /detokenize",
    "POST /render",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /tokenizer_info",
    "GET /health",
    "GET /ready",
    "GET /metrics",
    "GET /",
)


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    schemathesis = pytest.importorskip("schemathesis")
    with running(SharedFakeModel(max_context=256), template=TOOL_TEMPLATE) as server:
        yield schemathesis.openapi.from_url(server.address + "/openapi.json")


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in OPERATIONS for mode in MODES if name.startswith("POST") or mode == "positive"],
)
def test_answers_keep_to_the_document(api: Any, name: str, mode: str) -> None:
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    from tests.support.document_checks import refusals_have_reasons

    method, path = name.split()
    operation = api[path][method]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
    def check(case: Any) -> None:
        case.call_and_validate(
            additional_checks=[refusals_have_reasons], excluded_checks=[positive_data_acceptance], timeout=60
        )

    check()


def test_every_operation_is_tried(api: Any) -> None:
    found = {result.ok().label for result in api.get_all_operations()}
    assert found == {*OPERATIONS}
