"""Errors as an OpenAI client expects them, and which of ours becomes which."""

from __future__ import annotations

import logging
from typing import Any

from draftsmith.errors import (
    DraftsmithError,
    OutOfMemory,
    PromptTooLong,
    QueueFull,
    TemplateError,
    UsageError,
)

__all__ = ["ApiError", "as_api_error"]

MAX_MESSAGE = 400
RETRY_AFTER_S = 2


class ApiError(DraftsmithError):
    """A refusal with its HTTP status. ``param``: the field that is wrong. ``code``: a word for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = {"retry-after": str(RETRY_AFTER_S)} if retry else {}

    def body(self) -> dict[str, Any]:
        """The JSON object of OpenAI's errors; its length is bounded, whatever the request was."""
        message = " ".join(str(self).split())
        if len(message) > MAX_MESSAGE:
            message = message[: MAX_MESSAGE - 1] + "…"
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        param = self.param[:100] if self.param is not None else None
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 503: "overloaded_error"}


def as_api_error(error: Exception, param: str | None = None) -> ApiError:
    """What the client is told about ``error``; of an error that is not on purpose, nothing but that it happened."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLong):
        return ApiError(400, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, UsageError | TemplateError):
        return ApiError(400, str(error), param=param, code="invalid_value")
    if isinstance(error, QueueFull):
        return ApiError(503, str(error), code="overloaded", retry=True)
    if isinstance(error, OutOfMemory):
        return ApiError(503, "there is not enough memory for this request; try a shorter one", code="overloaded")
    logging.getLogger("draftsmith.server").error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request; its log says how", code="internal_error")
