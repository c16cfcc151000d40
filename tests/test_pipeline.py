"""``pipeline`` answers as the one of ``transformers`` does, and the model card's snippet runs with one line changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1]))
import draftsmith
from draftsmith import pipeline
from draftsmith.errors import UsageError
from draftsmith.pipeline import TextGenerationPipeline
from tests.support.fakes import fake_target
from tests.support.tiny import tiny_folder

PROMPT = "### Instruction:\nabc\n\n### Response:\n"
GREEDY: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}


@pytest.fixture(scope="module")
def pipe() -> TextGenerationPipeline:
    return pipeline("text-generation", model=fake_target(eos_after=70))


def test_the_name_is_the_function_whatever_was_imported_before() -> None:
    code = "import draftsmith.pipeline\nfrom draftsmith import pipeline\nassert callable(pipeline), pipeline"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert draftsmith.pipeline is pipeline


SNIPPET = '''
from draftsmith import pipeline
import torch

pipe = pipeline(
    "text-generation",
    model="Doctor-Shotgun/TinyLlama-1.1B-32k-Instruct",
    torch_dtype=torch.bfloat16,
    device_map="auto"
)

prompt = """### Instruction:
You are a helpful assistant specialized in simple technical explanations.

### Input:
Explain what speculative decoding is in simple terms.

### Response:
"""

outputs = pipe(prompt, max_new_tokens=200, temperature=0.7, top_p=0.95)
print(outputs[0]["generated_text"])
'''


def test_the_snippet_of_the_model_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word but for its import line; a tiny checkpoint lies where the hub's name leads as a path."""
    pytest.importorskip("torch")
    tiny_folder(tmp_path / "Doctor-Shotgun" / "TinyLlama-1.1B-32k-Instruct", chat_template=None)
    monkeypatch.chdir(tmp_path)
    exec(SNIPPET, {})  # noqa: S102  # what is tested is that this very text runs
    shown = capsys.readouterr().out
    assert shown.startswith("### Instruction:\nYou are a helpful assistant")
    assert len(shown.partition("### Response:\n")[2]) == 201  # a letter a token, and the newline of print


def test_a_prompt_gives_prompt_and_reply(pipe: TextGenerationPipeline) -> None:
    [result] = pipe(PROMPT, **GREEDY)
    [reply] = pipe(PROMPT, return_full_text=False, **GREEDY)
    assert result["generated_text"] == PROMPT + reply["generated_text"]
    assert len(reply["generated_text"]) == 20


def test_a_list_gives_a_list_of_lists(pipe: TextGenerationPipeline) -> None:
    assert pipe([PROMPT, "abc"], **GREEDY) == [pipe(PROMPT, **GREEDY), pipe("abc", **GREEDY)]


def test_a_conversation_gives_the_conversation_with_the_reply(pipe: TextGenerationPipeline) -> None:
    turns = [{"role": "user", "content": "abc"}]
    [result] = pipe(turns, **GREEDY)
    *before, reply = result["generated_text"]
    assert before == turns
    assert reply["role"] == "assistant"
    assert pipe(turns, return_full_text=False, **GREEDY) == [{"generated_text": reply["content"]}]
    assert pipe([turns, turns], **GREEDY) == [[result], [result]]


def test_sequences_of_one_prompt_differ(pipe: TextGenerationPipeline) -> None:
    texts = [result["generated_text"] for result in pipe("abc", num_return_sequences=3, seed=5, max_new_tokens=30)]
    assert len(set(texts)) == 3
    assert texts == [
        result["generated_text"] for result in pipe("abc", num_return_sequences=3, seed=5, max_new_tokens=30)
    ]


def test_stop_strings_have_both_names(pipe: TextGenerationPipeline) -> None:
    whole = pipe("abc", return_full_text=False, **GREEDY)[0]["generated_text"]
    for name in ("stop", "stop_strings"):
        cut = pipe("abc", return_full_text=False, **{name: whole[10]}, **GREEDY)[0]["generated_text"]
        assert cut == whole[: whole.index(whole[10])]


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", None, "auto"])
def test_dtype_and_places_of_the_card_are_taken(dtype: str | None) -> None:
    pipeline("text-generation", model=fake_target(), torch_dtype=dtype, device_map="auto", device="cpu")
    pipeline(model=fake_target(), dtype=dtype, device_map={"": "cpu"}, model_kwargs={"load_in_4bit": True})


def test_a_torch_dtype_is_taken_without_importing_torch() -> None:
    torch = pytest.importorskip("torch")
    pipeline(model=fake_target(), torch_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "fill-mask"}, "the task is 'fill-mask'; draftsmith has 'text-generation' only"),
        ({"device": "cpu", "device_map": "cuda"}, "device 'cpu' and device_map 'cuda' name several places; give one"),
        ({"device_map": {"": 0, "lm_head": "disk"}}, "device None and device_map {'': 0, 'lm_head': 'disk'} name"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit contradict each other"),
        (
            {"dtype": "float16", "torch_dtype": "bfloat16"},
            "dtype float16 and torch_dtype bfloat16 contradict each other",
        ),
        ({"revision": "main"}, "revision is 'main', but only a hub id as the model has revisions"),
        ({"torch_dtype": "int8"}, "dtype is 'int8'; it must be"),
        ({"trust_remote_code": True}, "trust_remote_code is on; draftsmith never runs code that comes with a model"),
        ({"dtype": "auto", "model_kwargs": {"dtype": "float16"}}, "dtype is given twice, also in model_kwargs"),
    ],
)
def test_what_cannot_be_honoured_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        pipeline(**({"model": fake_target()} | arguments))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        ("abc", {"num_beams": 4}, "num_beams is not an argument of generation here; these are: frequency_penalty, "),
        ("abc", {"temperature": -1.0}, "temperature is -1.0; it must be"),
        ("abc", {"num_return_sequences": 0}, "num_return_sequences is 0"),
        ([], {}, "the input is neither text nor messages"),
        ([{"role": "user"}], {}, "the input is neither text nor messages"),
        ([{"role": "user", "content": [{"type": "image"}]}], {}, "the content of a message is list; it must be text"),
        ("", {}, "The prompt is empty"),
    ],
)
def test_wrong_calls_are_one_sentence(
    pipe: TextGenerationPipeline, text: Any, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        pipe(text, **arguments)
    assert str(caught.value).startswith(sentence)
