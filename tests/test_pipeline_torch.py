"""``pipeline`` on the torch backend: what the model card shows, for models that native does not run."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch

from draftsmith import pipeline
from draftsmith.errors import UsageError
from draftsmith.model.torch_backend import TorchModel
from tests.support.tiny import tiny_folder
from tests.support.torch_models import torch_folder
from tests.test_pipeline import SNIPPET

CARD = Path("Doctor-Shotgun", "TinyLlama-1.1B-32k-Instruct")
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None or find_spec("accelerate") is None, reason="bitsandbytes is not installed"
)


def run_card(snippet: str, capsys: pytest.CaptureFixture[str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes and what it brings along
        exec(snippet, {})  # noqa: S102  # what is tested is that this very text runs
    shown = capsys.readouterr().out
    assert shown.startswith("### Instruction:\nYou are a helpful assistant")
    return shown.partition("### Response:\n")[2]


def test_the_snippet_runs_for_a_model_that_only_torch_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch_folder(tmp_path / CARD, "olmo2", max_position_embeddings=512)
    monkeypatch.chdir(tmp_path)
    assert len(run_card(SNIPPET, capsys)) == 201  # a letter a token, and the newline of print


@needs_bitsandbytes
@pytest.mark.parametrize("backend", ["", 'backend="torch",'])
def test_the_snippet_runs_in_4_bits(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Llama runs on native by default, and on torch when told so; both quantise in their own way."""
    tiny_folder(tmp_path / CARD, chat_template=None)
    monkeypatch.chdir(tmp_path)
    snippet = SNIPPET.replace('device_map="auto"', f'device_map="auto", {backend} load_in_4bit=True')
    assert snippet != SNIPPET
    assert len(run_card(snippet, capsys)) == 201


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_quantised_by_bitsandbytes(bits: int, tmp_path: Path) -> None:
    folder = torch_folder(tmp_path / "model", "olmo2", intermediate_size=128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = pipeline(model=str(folder), load_in_4bit=bits == 4, load_in_8bit=bits == 8, draft="none")
        assert pipe("abc", max_new_tokens=5, do_sample=False)[0]["generated_text"].startswith("abc")
    model = pipe.llm.target.model
    assert isinstance(model, TorchModel)
    kind = type(model.module.model.layers[0].mlp.up_proj).__name__
    assert kind == ("Linear4bit" if bits == 4 else "Linear8bitLt")


def test_a_device_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    folder = tiny_folder(tmp_path / "model")
    for place in ({"device_map": "cuda"}, {"device": 0}, {"device": torch.device("cuda", 1)}):
        with pytest.raises(UsageError, match=r"but PyTorch finds no CUDA devices; use auto or cpu$"):
            pipeline(model=str(folder), **place)
