"""llama.cpp and its fork ik_llama.cpp as peers: greedy decoding, plain and with a draft, over their C interface.

The bindings are those of llama-cpp-python and ik-llama-cpp-python, optional imports. Wheels of llama.cpp are built for
common processors and lack AVX-512; a comparison is fair only with a build for this machine, so build from source:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python

``system_info`` says what a build really uses; the benchmarks print it beside the result. The two libraries have the
same names for different things, so a process may load only one of them.
"""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import PeerMissingError, Reply

__all__ = ["LlamaCpp", "speculate", "system_info"]

_BINDINGS = {"llama.cpp": "llama_cpp", "ik_llama.cpp": "ik_llama_cpp._ctypes_api"}
_INSTALL = {
    "llama.cpp": 'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python',
    "ik_llama.cpp": "pip install ik-llama-cpp-python",
}


def _library(peer: str) -> Any:
    """The bindings of ``peer``, "llama.cpp" or "ik_llama.cpp". Raises PeerMissingError."""
    try:
        return importlib.import_module(_BINDINGS[peer])
    except ImportError:
        raise PeerMissingError(f"{peer} is not installed; {_INSTALL[peer]}, or leave this peer out") from None


def _symbol(library: Any, name: str, arguments: Sequence[Any], result: Any) -> Any:
    """A C function, also where the bindings of the fork do not list it."""
    function = getattr(library, name, None)
    if function is None:
        function = getattr(library._lib, name)
        function.argtypes, function.restype = list(arguments), result
    return function


def system_info(peer: str = "llama.cpp") -> str:
    """Instruction sets and options of the build, in its own words. Raises PeerMissingError."""
    return str(_symbol(_library(peer), "llama_print_system_info", [], ctypes.c_char_p)().decode())


class LlamaCpp:
    """A model and one context on the processor, greedy: the next token is the argmax of the logits."""

    def __init__(self, path: Path, *, threads: int, context: int, peer: str = "llama.cpp") -> None:
        self._c = _library(peer)
        self._c.llama_backend_init()
        self._be_quiet()
        model_params = self._c.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = self._c.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise PeerMissingError(f"{peer} cannot load {path.name}; leave this peer out or give another file")
        params = self._c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = self._c.llama_init_from_model(self._model, params)
        self.vocab_size = int(self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model)))
        self._bind_cache(peer)
        self.length = 0

    def _be_quiet(self) -> None:
        callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        callback = getattr(self._c, "llama_log_callback", callback)
        self._quiet = callback(lambda _level, _text, _data: None)  # kept alive: C calls it
        _symbol(self._c, "llama_log_set", [callback, ctypes.c_void_p], None)(self._quiet, ctypes.c_void_p(0))

    def _bind_cache(self, peer: str) -> None:
        """``_clear`` and ``_cut`` on the cache, which the fork calls by the names of older versions."""
        self._clear: Callable[[], Any]
        self._cut: Callable[[int], Any]
        c, context = self._c, self._context
        if peer == "llama.cpp":
            memory = c.llama_get_memory(context)
            self._clear = lambda: c.llama_memory_clear(memory, True)
            self._cut = lambda length: c.llama_memory_seq_rm(memory, 0, length, -1)
            return
        integers = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
        remove = _symbol(c, "llama_kv_cache_seq_rm", integers, ctypes.c_bool)
        self._clear = lambda: c.llama_kv_cache_clear(context)
        self._cut = lambda length: remove(context, 0, length, -1)

    def reset(self) -> None:
        """Forget all tokens."""
        self._clear()
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget the tokens from position ``length`` on."""
        if length < self.length:
            self._cut(length)
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
