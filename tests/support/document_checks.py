"""What Schemathesis checks beyond its own: a request that keeps to the document is refused only for what no document
can say. ``SCHEMATHESIS_HOOKS=tests.support.document_checks st run URL/openapi.json ...`` uses it, too.
"""

from __future__ import annotations

from typing import Any

import schemathesis

__all__ = ["MAX_ERROR", "refusals_have_reasons"]

MAX_ERROR = 16 * 1024  # bytes
FIELDS_BEYOND_SCHEMAS = frozenset(
    {
        "best_of",  # other than n
        "grammar",  # is none, or comes with another form
        "ignore_eos",  # with a form
        "logit_bias",  # of an id that is none of the model's
        "messages",  # that the model's template refuses
        "prompt",  # empty, or with ids that are none of the model's, or too many with n
        "regex",
        "response_format",
        "stream_options",  # without a stream
        "tokens",
        "tool_choice",
        "tools",  # two of one name
        "top_logprobs",  # without logprobs
    }
)


def refusals_have_reasons(_context: Any, response: Any, case: Any) -> None:
    """Errors are short and in one form; of good data, they name a field that a schema cannot describe wholly."""
    if response.status_code < 400:
        return
    assert len(response.content) <= MAX_ERROR, "a long error"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}, error
    if response.status_code != 400 or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    known = error["code"] == "context_length_exceeded" or error["param"] in FIELDS_BEYOND_SCHEMAS
    assert known, f"refused, though it keeps to the document: {error}"


schemathesis.check(refusals_have_reasons)  # known to the command line, too
