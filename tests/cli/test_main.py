"""The commands inside this process: what is typed wrong is answered in one sentence with the right exit code."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.cli import main
from draftsmith.cli.options import ModelOptions, SamplingOptions
from draftsmith.engine import DEFAULT_TARGET, EngineOptions
from draftsmith.types import SamplingParams
from tests.support.schemas import check_schema
from tests.support.tiny import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


class Shell:
    """Runs command lines and keeps what they say."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *args: str, stdin: bytes = b"") -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main(args)
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def json(self, *args: str, stdin: bytes = b"") -> dict[str, Any]:
        code, out, err = self(*args, stdin=stdin)
        assert (code, err) == (0, "")
        value: dict[str, Any] = json.loads(out.splitlines()[-1])
        return value


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


def test_defaults_are_those_of_the_engine() -> None:
    """The options repeat the defaults, because importing the engine for ``--help`` would take too long."""
    assert ModelOptions().target == DEFAULT_TARGET
    assert SamplingOptions().for_llm() == SamplingParams()
    given = ModelOptions().for_llm()
    for field in fields(EngineOptions):
        assert given[field.name] == field.default, field.name


def test_no_arguments_show_the_commands(shell: Shell) -> None:
    code, out, err = shell()
    assert (code, err) == (0, "")
    assert all(name in out for name in ("generate", "chat", "models"))


def test_generate_writes_the_text_and_nothing_else(shell: Shell, model: str) -> None:
    options = ("--target", model, "--raw", "--seed", "3", "--max-new-tokens", "30")
    result = shell.json("generate", "abc", "--json", *options)
    code, out, err = shell("generate", "abc", *options)
    assert (code, err) == (0, "")
    assert out == result["text"] + "\n"


def test_json_has_the_promised_shape(shell: Shell, model: str) -> None:
    result = shell.json("generate", "abc", "--target", model, "--raw", "--greedy", "--max-new-tokens", "40", "--json")
    check_schema(result, "generate")
    assert list(result) == ["text", "token_ids", "finish_reason", "usage", "timing", "speculation"]
    assert result["usage"] == {"prompt_tokens": 3, "completion_tokens": 40}
    assert result["finish_reason"] == "length"
    assert list(result["timing"]) == ["load_s", "prefill_s", "decode_s", "tokens_per_s"]
    assert result["speculation"]["drafter"] == "lookup"
    plain = shell.json(
        "generate", "abc", "--target", model, "--raw", "--greedy", "--max-new-tokens", "40", "--json", "--draft", "none"
    )
    check_schema(plain, "generate")
    assert plain["speculation"] is None
    assert plain["token_ids"] == result["token_ids"]


def test_a_draft_model_changes_nothing(shell: Shell, model: str, tmp_path: Path) -> None:
    draft = str(tiny_folder(tmp_path / "draft", seed=1))
    options = ("generate", "abc", "--target", model, "--raw", "--seed", "1", "--max-new-tokens", "40", "--json")
    plain = shell.json(*options, "--draft", "none")
    drafted = shell.json(*options, "--draft", draft, "--num-draft-tokens", "3")
    assert drafted["token_ids"] == plain["token_ids"]
    assert drafted["speculation"]["num_draft_tokens"] > 0
    assert drafted["speculation"]["drafter"] == draft


def test_a_draft_with_another_vocabulary_changes_nothing_but_a_note(shell: Shell, model: str, tmp_path: Path) -> None:
    draft = str(tiny_folder(tmp_path / "other", swap=True))
    options = ("generate", "abc", "--target", model, "--raw", "--greedy", "--max-new-tokens", "24")
    _, plain, silent = shell(*options, "--draft", "none")
    code, drafted, note = shell(*options, "--draft", draft, "--num-draft-tokens", "3")
    assert (code, drafted) == (0, plain)
    assert "its vocabulary differs" not in silent
    assert f"Note: the draft {draft}: its vocabulary differs, so it drafts by exact text" in note
    assert "% of a text" in note
    assert "Note" not in shell(*options, "--draft", draft, "--quiet")[2]


def test_a_mix_of_drafters(shell: Shell, model: str, tmp_path: Path) -> None:
    draft = str(tiny_folder(tmp_path / "draft", seed=1))
    options = ("generate", "abc", "--target", model, "--raw", "--seed", "1", "--max-new-tokens", "40", "--json")
    plain = shell.json(*options, "--draft", "none")
    for choice in (f"{draft}+lookup", f"{draft}+suffix", "suffix"):
        drafted = shell.json(*options, "--draft", choice, "--num-draft-tokens", "3")
        assert drafted["token_ids"] == plain["token_ids"]
        assert drafted["speculation"]["drafter"] == choice


def test_a_trace_is_recorded_and_replayed_without_the_models(shell: Shell, model: str, tmp_path: Path) -> None:
    draft, trace = str(tiny_folder(tmp_path / "draft", seed=1)), str(tmp_path / "trace.json")
    options = ("generate", "abc", "--target", model, "--raw", "--greedy", "--max-new-tokens", "40")
    drafted = (*options, "--draft", draft, "--num-draft-tokens", "16")
    assert shell(*drafted, "--trace", trace)[:2] == shell(*drafted)[:2]
    table = shell("replay", trace)[1].splitlines()
    assert table[0].split() == ["policy", "tokens/s", "times", "plain", "tokens/round", "drafted", "accepted"]
    assert table[3].split()[0::2] == ["plain", "1.00", "0"]
    assert float(table[3].split()[1]) > 0
    result = shell.json("replay", trace, "--json")
    assert result["drafter"] == draft
    assert result["policies"]["plain"]["tokens"] >= 39
    assert result["policies"]["4"]["num_draft_tokens"] > 0
    best = max(result["policies"], key=lambda name: result["policies"][name]["speedup"])
    assert (result["best"], table[-1].split()[:2]) == (best, ["Best:", f"{best},"])
    some = shell("replay", trace, "--policy", "theory, 0", "--policy", "5")[1].splitlines()
    assert [line.split()[0] for line in some[1:-1]] == ["theory", "plain", "5"]
    for wrong in ("fast", "65", "-1", "auto,"):
        code, _, err = shell("replay", trace, "--policy", wrong)
        assert (code, "it must be auto, theory, plain or a number of tokens up to 64" in err) == (2, True)
    code, _, err = shell(*options, "--draft", "none", "--trace", trace)
    assert (code, "nothing to trace without a drafter" in err) == (2, True)
    code, _, err = shell("replay", str(tmp_path / "draft" / "config.json"))
    assert (code, "is no trace of draftsmith's" in err) == (2, True)


def test_the_prompt_may_come_from_standard_input(shell: Shell, model: str) -> None:
    options = ("--target", model, "--raw", "--greedy", "--max-new-tokens", "20", "--json")
    given = shell.json("generate", "ab\ncd", *options)
    assert shell.json("generate", "-", *options, stdin=b"ab\ncd")["token_ids"] == given["token_ids"]
    assert shell.json("generate", *options, stdin=b"ab\ncd")["token_ids"] == given["token_ids"]


def test_prompts_are_messages_unless_raw(shell: Shell, model: str) -> None:
    options = ("--target", model, "--greedy", "--max-new-tokens", "2", "--json")
    wrapped = "<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n"
    tokens = len(wrapped) - len("<|im_start|>" * 2 + "<|im_end|>") + 3
    assert shell.json("generate", "abc", *options)["usage"]["prompt_tokens"] == tokens
    system = "<|im_start|>system\nxyz<|im_end|>\n"
    more = len(system) - len("<|im_start|><|im_end|>") + 2
    result = shell.json("generate", "abc", "--system", "xyz", *options)
    assert result["usage"]["prompt_tokens"] == tokens + more
    alpaca = shell.json("generate", "abc", "--format", "alpaca", *options)
    assert alpaca["usage"]["prompt_tokens"] == len("### Input:\nabc\n\n### Response:\n")


def test_stop_and_bias_act(shell: Shell, model: str) -> None:
    options = ("generate", "abc", "--target", model, "--raw", "--greedy", "--max-new-tokens", "30", "--json")
    text = shell.json(*options)["text"]
    cut = shell.json(*options, "--stop", text[9:11])
    assert cut["text"] == text[: text.index(text[9:11])]
    assert cut["finish_reason"] == "stop"
    assert shell.json(*options, "--logit-bias", "90:100")["text"] == "Z" * 30


WRONG = [
    (("nope",), 2, "no such command 'nope'"),
    (("generate", "hi", "--nope"), 2, "no such option: --nope"),
    (("generate", "hi", "--top-k", "many"), 2, "invalid value for '--top-k'"),
    (("generate", "hi", "--top-p", "1.5"), 2, "top_p is 1.5; it must be above 0 and at most 1 (off)"),
    (("generate", "hi", "--temperature", "-1"), 2, "temperature is -1.0; it must be 0 (greedy) or more"),
    (("generate", "hi", "--temperature", "nan"), 2, "temperature is nan; it must be"),
    (("generate", "hi", "--max-new-tokens", "0"), 2, "max_new_tokens is 0; it must be at least 1"),
    (("generate", "hi", "--greedy", "--temperature", "0.7"), 2, "--greedy and --temperature 0.7 contradict each other"),
    (("generate", "hi", "--raw", "--system", "x"), 2, "--raw and --system contradict each other"),
    (("generate", "hi", "--raw", "--format", "chat"), 2, "--raw and --format contradict each other"),
    (
        ("generate", "hi", "--draft", "none", "--num-draft-tokens", "4"),
        2,
        "num_draft_tokens 4 and draft none contradict",
    ),
    (
        ("generate", "hi", "--num-draft-tokens", "few"),
        2,
        "--num-draft-tokens is 'few'; it must be auto or a whole number",
    ),
    (("generate", "hi", "--logit-bias", "5"), 2, "--logit-bias is '5'; write it as ID:X, for example 42:-1.5"),
    (("generate", "hi", "--color", "red"), 2, "--color is 'red'; it must be one of auto, always, never"),
    (("generate", "hi", "--backend", "gpu"), 2, "backend is 'gpu'; it must be auto or native or torch"),
    (("generate", "hi", "--quantize", "3bit"), 2, "quantize is '3bit'; it must be none or 4bit or 8bit"),
    (("generate", "hi", "--threads", "0"), 2, "threads is 0; it must be at least 1"),
    (("generate", ""), 2, "the prompt is empty; write something to answer"),
    (("generate", "\udcff"), 2, "the prompt is not UTF-8 text; convert it first"),
    (("generate", "hi", "--target", "./nothing.gguf"), 1, "there is no ./nothing.gguf"),
    (("generate", "hi", "--target", "not a model"), 2, "'not a model' is no path"),
    (("models", "remove", "smollm2-135m-instruct"), 2, "smollm2-135m-instruct is not in the cache"),
    (("models", "show", "smollm2-135m-instruct"), 1, "smollm2-135m-instruct is not in the cache"),
    (("models", "show"), 2, "missing argument 'REF'"),
]


@pytest.mark.parametrize(("args", "code", "beginning"), WRONG)
def test_wrong_use_is_one_sentence(shell: Shell, args: tuple[str, ...], code: int, beginning: str) -> None:
    got, out, err = shell(*args)
    assert (got, out) == (code, "")
    assert err.startswith(f"draftsmith: {beginning}")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_wrong_use_with_a_model_is_one_sentence(shell: Shell, model: str) -> None:
    for args, code, beginning in [
        (("a" * 600, "--raw"), 2, "The prompt has 600 tokens, but the context holds 512"),
        (("hi", "--max-context", "9999"), 2, "max_context is 9999"),
        (("hi", "--format", "nothing"), 2, "prompt format 'nothing' is unknown"),
        (("hi", "--raw", "--logit-bias", "9999:1"), 2, "logit_bias has the token id 9999"),
    ]:
        got, out, err = shell("generate", *args, "--target", model)
        assert (got, out.strip(), err.count("\n")) == (code, "", 1)
        assert err.startswith(f"draftsmith: {beginning}"), err


def test_damaged_files_are_one_sentence(shell: Shell, tmp_path: Path) -> None:
    for name, content in (("empty.gguf", b""), ("text.gguf", b"hello, I am no model"), ("cut.gguf", b"GGUF\x03\0\0\0")):
        path = tmp_path / name
        path.write_bytes(content)
        code, out, err = shell("generate", "hi", "--target", str(path))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert name in err


def test_input_that_is_not_text_is_refused(shell: Shell) -> None:
    code, out, err = shell("generate", "-", stdin=b"ab\xff")
    assert (code, out) == (2, "")
    assert err == "draftsmith: standard input is not UTF-8 text (byte 2); convert it first\n"


def test_models_lists_and_shows(shell: Shell, model: str) -> None:
    code, out, _ = shell("models")
    assert code == 0
    assert "smollm2-135m-instruct" in out
    assert shell("models", "list")[1] == out
    [entry] = shell.json("models", "list", "--json")["models"]
    assert entry["reference"] == "smollm2-135m-instruct"
    assert entry["path"] is None
    shown = shell.json("models", "show", model, "--json")
    assert shown["architecture"] == "llama"
    assert shown["layers"] == 2
    code, out, _ = shell("models", "show", model)
    assert code == 0
    assert "F32 100%" in out


def test_a_bug_is_one_sentence_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("oh\nno")

    monkeypatch.setattr("draftsmith.cli.generate.read_prompt", broken)
    code, out, err = shell("generate", "hi")
    assert (code, out) == (1, "")
    assert err.startswith("draftsmith: internal error, KeyError: 'oh\\nno'; set DRAFTSMITH_DEBUG=1")
    assert err.count("\n") == 1
    monkeypatch.setenv("DRAFTSMITH_DEBUG", "1")
    assert "Traceback" in shell("generate", "hi")[2]


def test_interruption_is_130(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("draftsmith.cli.generate.read_prompt", interrupted)
    assert shell("generate", "hi") == (130, "", "")
