"""llama.cpp as a peer: greedy decoding, plain and with a draft model, over its C interface.

The bindings are those of llama-cpp-python, an optional import. Wheels of llama.cpp are built for common processors and
lack AVX-512; a comparison is fair only with a build for this machine, so build from source:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python

``system_info`` says what a build really uses; the benchmarks print it beside the result.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import Reply

__all__ = ["LlamaCpp", "PeerMissingError", "speculate", "system_info"]

MISSING = (
    "llama-cpp-python is not installed; install it from source for this machine "
    '(CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python), or leave this peer out'
)


class PeerMissingError(ImportError):
    """The peer's package is not there; the message is a sentence for the reader."""


def _library() -> Any:
    try:
        import llama_cpp  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise PeerMissingError(MISSING) from None
    return llama_cpp


def system_info() -> str:
    """Instruction sets and options of the build, in llama.cpp's own words."""
    return str(_library().llama_print_system_info().decode())


class LlamaCpp:
    """A model and one context on the processor, greedy: the next token is the argmax of the logits."""

    def __init__(self, path: Path, *, threads: int, context: int) -> None:
        self._c = _library()
        self._c.llama_backend_init()
        self._quiet = self._c.llama_log_callback(lambda _level, _text, _data: None)  # kept alive: C calls it
        self._c.llama_log_set(self._quiet, ctypes.c_void_p(0))
        model_params = self._c.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = self._c.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise PeerMissingError(f"llama.cpp cannot load {path.name}; leave this peer out or give another file")
        params = self._c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = self._c.llama_init_from_model(self._model, params)
        self.vocab_size = int(self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model)))
        self.length = 0

    def reset(self) -> None:
        """Forget all tokens."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget the tokens from position ``length`` on."""
        if length < self.length:
            self._c.llama_memory_seq_rm(self._c.llama_get_memory(self._context), 0, length, -1)
            self.length = length

    def forward(self, token_ids: Sequence[int], *, num_logits: int = 1) -> npt.NDArray[np.float32]:
        """Append tokens (512 at most) and return a copy of the last ``num_logits`` rows of logits, [R, V]."""
        count = len(token_ids)
        batch = self._c.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index, token_id in enumerate(token_ids):
                batch.token[index] = token_id
                batch.pos[index] = self.length + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = index >= count - num_logits
            code = self._c.llama_decode(self._context, batch)
            if code != 0:
                raise RuntimeError(f"llama_decode returned {code} for {count} tokens at {self.length}")
        finally:
            self._c.llama_batch_free(batch)
        self.length += count
        rows = [
            np.ctypeslib.as_array(self._c.llama_get_logits_ith(self._context, index), (self.vocab_size,))
            for index in range(count - num_logits, count)
        ]
        return np.stack(rows)

    def greedy(self, prompt_ids: Sequence[int], num_tokens: int) -> Reply:
        """Plain decoding: ``num_tokens`` tokens, end-of-text tokens written like others."""
        self.reset()
        begin = time.perf_counter()
        ids = [int(self.prefill(prompt_ids).argmax())]
        first = time.perf_counter()
        while len(ids) < num_tokens:
            ids.append(int(self.forward(ids[-1:])[0].argmax()))
        return Reply(tuple(ids), first - begin, time.perf_counter() - first)

    def prefill(self, prompt_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append a prompt of any length and return the logits [V] that follow its last token."""
        for start in range(0, len(prompt_ids), 512):
            logits = self.forward(prompt_ids[start : start + 512])
        return np.asarray(logits[-1])


def speculate(target: LlamaCpp, draft: LlamaCpp, prompt_ids: Sequence[int], num_tokens: int, k: int) -> Reply:
    """Greedy speculative decoding with drafts of ``k`` tokens: what llama.cpp's speculative-simple example does."""
    target.reset()
    draft.reset()
    begin = time.perf_counter()
    ids = [*prompt_ids, int(target.prefill(prompt_ids).argmax())]
    draft.prefill(prompt_ids)
    first = time.perf_counter()
    end, drafted, accepted = len(prompt_ids) + num_tokens, 0, 0
    while len(ids) < end:
        proposal: list[int] = []
        unread = ids[draft.length :]
        for _ in range(min(k, end - len(ids) - 1)):
            proposal.append(int(draft.forward(proposal[-1:] or unread)[-1].argmax()))
        logits = target.forward([ids[-1], *proposal], num_logits=len(proposal) + 1)
        wanted = [int(token_id) for token_id in logits.argmax(axis=-1)]
        keep = next((i for i, token_id in enumerate(proposal) if token_id != wanted[i]), len(proposal))
        drafted, accepted = drafted + len(proposal), accepted + keep
        ids += wanted[: keep + 1]
        target.truncate(len(ids) - 1)
        draft.truncate(min(draft.length, len(ids) - 1))
    reply = tuple(ids[len(prompt_ids) :])
    return Reply(reply, first - begin, time.perf_counter() - first, drafted, accepted)
