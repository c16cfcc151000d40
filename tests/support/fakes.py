"""A small deterministic model for tests of the engine and of what stands on it: the real protocol, no weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from draftsmith.engine import LoadedModel
from draftsmith.errors import UsageError
from draftsmith.model.protocol import KVCache, Logits, TokenRun
from draftsmith.text import Tokenizer

EOS = 256
VOCAB_SIZE = 260
LETTERS = np.frombuffer(b"abcdefgh \n", np.uint8)


class FakeCache:
    """Remembers the tokens themselves."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        if not 0 <= length <= len(self.ids):
            raise ValueError(f"cannot truncate {len(self.ids)} tokens to {length}")
        del self.ids[length:]


class FakeModel:
    """Logits depend on the last ``order`` tokens only, so texts repeat themselves and prompt lookup has work to do.

    ``eos_after``: end of text is likeliest once that many tokens are in the cache. ``tokens_read`` counts every token
    that was forwarded, ``fail_at`` makes the forward that would pass so many tokens raise.
    """

    def __init__(self, seed: int = 0, *, order: int = 2, max_context: int = 512, eos_after: int | None = None) -> None:
        self.vocab_size = VOCAB_SIZE
        self.max_context = max_context
        self.tokens_read = 0
        self.fail_at: int | None = None
        self._seed = seed
        self._order = order
        self._eos_after = eos_after

    def new_cache(self, capacity: int | None = None) -> FakeCache:
        capacity = self.max_context if capacity is None else capacity
        if capacity > self.max_context:
            raise UsageError(f"the capacity is {capacity}; it must be at most {self.max_context}")
        return FakeCache(capacity)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        return [self._forward(run) for run in runs]

    def _forward(self, run: TokenRun) -> Logits:
        cache: KVCache = run.cache
        assert isinstance(cache, FakeCache)
        if cache.length + len(run.token_ids) > cache.capacity:
            raise ValueError("the run does not fit the cache")
        self.tokens_read += len(run.token_ids)
        if self.fail_at is not None and self.tokens_read >= self.fail_at:
            raise KeyboardInterrupt
        cache.ids += run.token_ids
        ends = range(cache.length - run.num_logits + 1, cache.length + 1)
        return np.array([self._row(cache.ids[:end]) for end in ends], np.float32).reshape(-1, VOCAB_SIZE)[
            :, : run.vocab_limit
        ]

    def _row(self, ids: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        rng = np.random.default_rng([self._seed, *ids[-self._order :]])
        row = rng.standard_normal(VOCAB_SIZE).astype(np.float32) - 20
        row[LETTERS] += 20
        row[LETTERS] *= 2
        if self._eos_after is not None and len(ids) >= self._eos_after:
            row[EOS] = 50
        return row


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE, first_letter: str = "") -> Tokenizer:
    """One token a byte, three control tokens. ``first_letter`` changes what id 97 stands for: another vocabulary."""
    tokens = list(byte_characters().values())
    tokens[97] = first_letter or "a"
    special = ["<|im_end|>", "<|im_start|>", "<pad>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*tokens, *special],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * len(special),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": EOS,
    }
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    return Tokenizer.from_gguf(metadata)


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-ins for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return dict(sorted(characters.items()))


def fake_target(name: str = "fake", **options: int) -> LoadedModel:
    """A LoadedModel made of the two above."""
    return LoadedModel(name, FakeModel(**options), byte_tokenizer())
