"""Exported files in llama.cpp itself, where its Python binding is installed: they load, and write what we write."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftsmith import LLM, SamplingParams
from draftsmith.export.gguf import write_gguf_export
from draftsmith.export.source import opened
from draftsmith.quant import BlockType
from tests.support.tiny import tiny_folder

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@pytest.mark.parametrize("block_type", [BlockType.F32, BlockType.BF16])
def test_the_same_greedy_tokens(block_type: BlockType, tmp_path: Path) -> None:
    """An f32 file: row order, norms, RoPE and tokenizer are all as llama.cpp has them, or the texts would part."""
    with opened(str(tiny_folder(tmp_path / "tiny"))) as source:
        write_gguf_export(source, tmp_path / "m.gguf", block_type)
        template = source.tokenizer.chat_template
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, n_threads=1, verbose=False)
    ours = LLM(str(tmp_path / "m.gguf"), draft=None, threads=1)
    assert theirs.metadata["tokenizer.chat_template"] == template
    for prompt in ("hello world", "a b c\n"):
        ids = ours.tokenizer.encode(prompt)
        assert theirs.tokenize(prompt.encode(), add_bos=ours.tokenizer.add_bos, special=False) == ids
        written: list[int] = []
        for token in theirs.generate(ids, top_k=1, temp=0.0):
            written.append(token)
            if len(written) == 16:
                break
        reply = ours.generate(prompt, SamplingParams(max_new_tokens=16, temperature=0.0, ignore_eos=True))
        completion = reply[0] if isinstance(reply, list) else reply
        assert list(completion.token_ids) == written
