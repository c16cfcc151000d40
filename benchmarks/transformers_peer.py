"""Hugging Face transformers as a peer: greedy decoding, plain and assisted, of the same GGUF weights in bfloat16.

transformers unpacks the blocks of a GGUF file to 16 bits, so it reads about four times the bytes. An optional import:
``pip install torch transformers gguf``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import PeerMissingError, Reply

__all__ = ["Transformers"]


class _Clock:
    """Takes the place of a text streamer: notes when the first token of the reply comes."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    def put(self, _tokens: Any) -> None:
        self.calls.append(time.perf_counter())

    def end(self) -> None:
        pass


class Transformers:
    """A target and, with ``draft``, its assistant model. Raises PeerMissingError."""

    def __init__(self, target: Path, draft: Path | None, *, threads: int) -> None:
        try:
            import torch
            import transformers
        except ImportError:
            message = "transformers is not installed; pip install torch transformers gguf, or leave this peer out"
            raise PeerMissingError(message) from None
        torch.set_num_threads(threads)
        logging: Any = transformers.utils.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._torch = torch
        self._target = self._load(target)
        self._draft = self._load(draft) if draft is not None else None

    def _load(self, path: Path) -> Any:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=self._torch.bfloat16, local_files_only=True
        )
        model.generation_config.eos_token_id = None  # end-of-text tokens are written like others
        return model.eval()

    def greedy(self, prompt_ids: Sequence[int], num_tokens: int, *, assisted: bool = False) -> Reply:
        """``num_tokens`` tokens, with the assistant or without. The first streamer call brings the prompt."""
        clock = _Clock()
        prompt = self._torch.tensor([list(prompt_ids)])
        begin = time.perf_counter()
        written = self._target.generate(
            prompt,
            attention_mask=self._torch.ones_like(prompt),
            assistant_model=self._draft if assisted else None,
            streamer=clock,
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            pad_token_id=0,
        )
        end = time.perf_counter()
        first = clock.calls[1]
        return Reply(tuple(int(token_id) for token_id in written[0, len(prompt_ids) :]), first - begin, end - first)
