"""The exception tree. Every error that draftsmith raises on purpose is one of these.

    DraftsmithError                 something went wrong; the message is one sentence for the reader
      UsageError                    the caller asked for something impossible or contradictory (exit code 2)
        PromptTooLong               the prompt does not fit into the context
      CheckpointError               a model's files are missing, damaged, or of a kind we cannot read
        UnsupportedModel            the files are well-formed, but the architecture or block type is unknown to us
      TokenizerError                a tokenizer's files are damaged, or two tokenizers do not match
      TemplateError                 a chat template cannot be rendered with these messages
      ResourceError                 the machine lacks what the work needs
        OutOfMemory                 the weights or the cache would not fit into memory
        DiskFull                    there is no room to write a file
      QueueFull                   more requests are waiting than may wait
      HubError                      a model hub or package index could not be reached or does not have the file

A message says what was got, what was expected, and what to do. It names files and values, and it holds no newline.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DiskFull",
    "DraftsmithError",
    "HubError",
    "OutOfMemory",
    "PromptTooLong",
    "QueueFull",
    "ResourceError",
    "TemplateError",
    "TokenizerError",
    "UnsupportedModel",
    "UsageError",
]


class DraftsmithError(Exception):
    """Base of the tree. ``exit_code`` is what the command line returns when it meets the error."""

    exit_code: int = 1


class UsageError(DraftsmithError, ValueError):
    """An option, argument or input value that cannot be used."""

    exit_code = 2


class PromptTooLong(UsageError):
    """The prompt has more tokens than the context can hold."""


class CheckpointError(DraftsmithError):
    """A checkpoint's files are missing, truncated, corrupt or contradictory."""


class UnsupportedModel(CheckpointError):
    """The checkpoint is readable, but its architecture or block type is not supported."""


class TokenizerError(DraftsmithError):
    """A tokenizer is damaged, or the draft's does not match the target's."""


class TemplateError(DraftsmithError):
    """A prompt format cannot express the messages, or its template is broken."""


class ResourceError(DraftsmithError):
    """The machine lacks memory, disk or processors for the work."""


class OutOfMemory(ResourceError):
    """Checked before allocating: the need is larger than what is available."""


class DiskFull(ResourceError):
    """A write was refused for lack of space; nothing half-written is left."""


class QueueFull(ResourceError):
    """A request was refused because too many others are waiting; a later try may succeed."""


class HubError(DraftsmithError):
    """A hub or package index refused, did not answer, or has no such file."""
