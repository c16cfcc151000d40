"""OpenVINO GenAI as a peer: greedy decoding of a GGUF file, plain or with its prompt lookup.

It reads GGUF files of some block types only (Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, not Q5_0). An optional import:
``pip install openvino-genai``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import PeerMissingError, Reply

__all__ = ["OpenVino"]


class OpenVino:
    """A pipeline on the processor; ``prompt_lookup`` lets it draft from the text so far. Raises PeerMissingError."""

    def __init__(self, path: Path, *, threads: int, prompt_lookup: bool = False) -> None:
        try:
            import openvino_genai  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            message = "openvino-genai is not installed; pip install openvino-genai, or leave this peer out"
            raise PeerMissingError(message) from None
        self._genai: Any = openvino_genai
        self._lookup = prompt_lookup
        options = {"INFERENCE_NUM_THREADS": threads}
        try:
            self._pipeline = openvino_genai.LLMPipeline(str(path), "CPU", prompt_lookup=prompt_lookup, **options)
        except RuntimeError as error:
            raise PeerMissingError(f"OpenVINO cannot load {path.name}: {str(error).strip().splitlines()[-1]}") from None

    def greedy(self, prompt_ids: Sequence[int], num_tokens: int) -> Reply:
        """``num_tokens`` tokens, end-of-text tokens written like others; the time to the first is its own measure."""
        import openvino  # type: ignore[import-not-found,unused-ignore]

        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = num_tokens, False, True
        if self._lookup:
            config.num_assistant_tokens, config.max_ngram_size = 5, 3
        begin = time.perf_counter()
        done = self._pipeline.generate(openvino.Tensor(np.array([list(prompt_ids)], np.int64)), config)
        total = time.perf_counter() - begin
        first = done.perf_metrics.get_ttft().mean / 1000
        return Reply(tuple(int(token_id) for token_id in done.tokens[0]), first, total - first)
