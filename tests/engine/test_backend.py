"""Which backend runs what, target and draft on different ones, and what is said when something is not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch

from draftsmith.checkpoint import open_checkpoint
from draftsmith.cli import main
from draftsmith.engine import LLM, EngineOptions
from draftsmith.engine.backend import choose_backend, torch_is_installed
from draftsmith.errors import CheckpointError, DraftsmithError, UnsupportedModel, UsageError
from draftsmith.measure.certificate import certificate_json
from draftsmith.measure.certify import CertifyPlan, certify
from draftsmith.measure.pair import load_pair
from draftsmith.measure.prompts import PromptItem
from draftsmith.model.native import NativeModel
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.model.torch_backend import TorchModel, TorchOptions, load_torch_model
from draftsmith.types import SamplingParams
from tests.support.tiny import tiny_folder
from tests.support.tiny_models import write_llama_gguf
from tests.support.torch_models import random_module, torch_folder

GREEDY = SamplingParams(greedy=True, max_new_tokens=24)
SAMPLED = SamplingParams(seed=3, temperature=1.0, max_new_tokens=24)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def olmo2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torch_folder(tmp_path_factory.mktemp("models") / "olmo2", "olmo2")


@pytest.mark.parametrize(
    ("model", "options", "gpu", "expected"),
    [
        ("llama", {}, False, "native"),
        ("llama", {}, True, "torch"),
        ("llama", {"device": "cpu"}, True, "native"),
        ("llama", {"device": "cuda"}, False, "torch"),
        ("llama", {"backend": "torch"}, False, "torch"),
        ("llama", {"backend": "native"}, True, "native"),
        ("olmo2", {}, False, "torch"),
        ("olmo2", {"backend": "native"}, False, "native"),
        ("gguf", {}, True, "native"),
        ("gguf", {"device": "cuda:1"}, True, "torch"),
    ],
)
def test_the_choice(
    model: str, options: dict[str, Any], gpu: bool, expected: str, llama: Path, olmo2: Path, tmp_path: Path
) -> None:
    paths = {"llama": llama, "olmo2": olmo2, "gguf": tmp_path / "model.gguf"}
    write_llama_gguf(paths["gguf"])
    assert choose_backend(paths[model], EngineOptions(**options), lambda: gpu) == expected


def test_native_has_no_device() -> None:
    with pytest.raises(UsageError, match="device is 'cuda', but the native backend runs on the processor"):
        choose_backend(Path("any"), EngineOptions(backend="native", device="cuda"), lambda: True)


def test_both_backends_write_the_same(llama: Path) -> None:
    """The same weights in float32: arithmetic differs in the last bits, which no choice here depends on."""
    native = LLM(llama, "none", backend="native", dtype="float32")
    other = LLM(llama, "none", backend="torch", dtype="float32")
    assert isinstance(native.target.model, NativeModel)
    assert isinstance(other.target.model, TorchModel)
    for params in (GREEDY, SAMPLED):
        assert native.generate("abc", params)[0].token_ids == other.generate("abc", params)[0].token_ids


@pytest.mark.parametrize(("target", "draft"), [("native", "torch"), ("torch", "native"), ("torch", "torch")])
def test_target_and_draft_may_be_on_different_backends(target: Any, draft: Any, llama: Path) -> None:
    plain = LLM(llama, "none", backend=target, dtype="float32")
    llm = LLM(llama, llama, backend=target, draft_backend=draft, dtype="float32", num_draft_tokens=3)
    for params in (GREEDY, SAMPLED):
        [completion] = llm.generate("abc", params)
        assert completion.token_ids == plain.generate("abc", params)[0].token_ids
        assert completion.speculation is not None
        assert completion.speculation.acceptance_rate > 0.9


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_a_4_bit_native_draft_for_a_torch_target_changes_nothing(
    params: SamplingParams, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target in bfloat16, where only the exact mode promises that."""
    native: list[int] = []
    forward = NativeModel.forward

    def counted(self: NativeModel, runs: Sequence[TokenRun]) -> list[Logits]:
        native.append(len(runs))
        return forward(self, runs)

    monkeypatch.setattr(NativeModel, "forward", counted)
    draft = tmp_path / "draft.gguf"
    assert main(["quantize", str(llama), str(draft), "--bits", "4"]) == 0
    options: dict[str, Any] = {"backend": "torch", "dtype": "bfloat16", "exact": True}
    plain = LLM(llama, "none", **options)
    llm = LLM(llama, draft, **options, draft_backend="native", num_draft_tokens=3)
    assert isinstance(llm.target.model, TorchModel)
    [completion] = llm.generate("abc", params)
    assert completion.token_ids == plain.generate("abc", params)[0].token_ids
    assert completion.speculation is not None
    assert 0.2 < completion.speculation.acceptance_rate < 1
    assert native


def test_the_draft_has_its_own_device() -> None:
    options = EngineOptions(backend="torch", device="cuda:1", exact=True, draft_backend="native")
    draft = options.for_draft()
    assert (draft.backend, draft.device, draft.exact) == ("native", "auto", False)
    mixed = EngineOptions(device="cuda", dtype="bfloat16", draft_backend="native")
    assert (mixed.for_draft().dtype, EngineOptions(backend="native", dtype="bfloat16").for_draft().dtype) == (
        "auto",
        "bfloat16",
    )
    assert EngineOptions(device="cuda", draft_device="cpu").for_draft().device == "cpu"
    assert EngineOptions(device="cuda").for_draft().device == "cuda"


def test_a_model_that_native_does_not_run_drafts_chats_and_batches(olmo2: Path) -> None:
    plain, llm = LLM(olmo2, "none", exact=True), LLM(olmo2, "lookup", num_draft_tokens=4, exact=True)
    prompts = ["abcabcabc", "hello hello", "x"]
    together = [completion.token_ids for completion in llm.generate(prompts, GREEDY)]
    assert together == [completion.token_ids for completion in plain.generate(prompts, GREEDY)]
    assert together == [plain.generate(prompt, GREEDY)[0].token_ids for prompt in prompts]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_runs_on_torch(dtype: Any, tmp_path: Path) -> None:
    """Its blocks are unfolded; RoPE is that of the native backend."""
    path = write_llama_gguf(tmp_path / "model.gguf")
    native = NativeModel.load(open_checkpoint(path), dtype="float32")
    model = load_torch_model(path, "model", TorchOptions(dtype=dtype))
    ids = [5, 9, 3, 7, 1, 2, 8, 30]
    [expected] = native.forward([TokenRun(native.new_cache(), ids, num_logits=8)])
    [logits] = model.forward([TokenRun(model.new_cache(), ids, num_logits=8)])
    assert str(model.dtype) == f"torch.{dtype}"
    np.testing.assert_allclose(logits, expected, atol=2e-4 if dtype == "float32" else 0.2 * np.abs(expected).max())
    with pytest.raises(UsageError, match="is a GGUF file, whose weights the torch backend unfolds"):
        load_torch_model(path, "model", TorchOptions(quantize="4bit"))


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_frequencies_that_follow_the_text_are_fixed(scaling: str, tmp_path: Path) -> None:
    """One token after another gives what all at once give, across the border where ``transformers`` changes them."""
    rope: dict[str, Any] = {"rope_type": scaling, "rope_theta": 10000.0, "factor": 4.0}
    if scaling == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
        rope["original_max_position_embeddings"] = 32
    folder = torch_folder(tmp_path / "model", "olmo2", rope_parameters=rope, max_position_embeddings=128)
    model = load_torch_model(folder, "model", TorchOptions())
    ids = [int(i) for i in np.random.default_rng(0).integers(97, 110, 48)]
    [at_once] = model.forward([TokenRun(model.new_cache(), ids, num_logits=48)])
    cache = model.new_cache()
    single = [model.forward([TokenRun(cache, [i])])[0][0] for i in ids]
    np.testing.assert_allclose(at_once, single, atol=2e-3)


def changed(folder: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_what_cannot_be_loaded_is_one_sentence(olmo2: Path, tmp_path: Path) -> None:
    own = changed(olmo2, tmp_path / "own", model_type="my_own", auto_map={"AutoModel": "code.Model"})
    (own / "code.py").write_text("raise SystemExit('this was run')")
    pickled = changed(olmo2, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    damaged = changed(olmo2, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\xff" * 100)
    cases: list[tuple[Path, type[DraftsmithError], str]] = [
        (own, UnsupportedModel, "does not know; the code that comes with it is never run; take another model"),
        (changed(olmo2, tmp_path / "old", model_type="no_such_type"), UnsupportedModel, "transformers does not know; "),
        (changed(olmo2, tmp_path / "bert", model_type="t5"), UnsupportedModel, "t5 model, which is no causal"),
        (pickled, CheckpointError, "has no safetensors files; pickles are never read"),
        (damaged, CheckpointError, "transformers cannot load model: "),
        (changed(olmo2, tmp_path / "more", num_hidden_layers=3), CheckpointError, "lacks weights that its config.json"),
        (changed(olmo2, tmp_path / "wide", intermediate_size=128), CheckpointError, "model"),
        (tmp_path, CheckpointError, "there is no "),
    ]
    for method, sentence in [("gptq", "pip install optimum"), ("awq", "pip install gptqmodel")]:
        settings = {"quant_method": method, "bits": 4, "group_size": 32}
        cases.append((changed(olmo2, tmp_path / method, quantization_config=settings), CheckpointError, sentence))
    for folder, kind, sentence in cases:
        with pytest.raises(kind) as caught:
            load_torch_model(folder, "model", TorchOptions())
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="max_context is 9999; model was made for 1 to 256 tokens"):
        load_torch_model(olmo2, "model", TorchOptions(max_context=9999))
    with pytest.raises(UsageError, match="device is 'gpu'; it must be auto, cpu, cuda, cuda:N or mps"):
        load_torch_model(olmo2, "model", TorchOptions(device="gpu"))


def test_without_the_extra_it_says_what_to_install(llama: Path, olmo2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftsmith.engine.backend.find_spec", lambda _: None)
    assert not torch_is_installed()
    with pytest.raises(UsageError, match=r"which is not installed; run: pip install 'draftsmith\[torch\]'$"):
        LLM(llama, "none", backend="torch")
    with pytest.raises(UnsupportedModel, match=r"or run: pip install 'draftsmith\[torch\]' for the torch backend$"):
        LLM(olmo2, "none")
    with pytest.raises(UsageError, match="backend is 'gpu'; it must be auto or native or torch"):
        LLM(llama, "none", backend="gpu")  # type: ignore[arg-type]


def test_the_command_line(olmo2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "abc", "--target", str(olmo2), "--draft", "none", "--max-new-tokens", "5", "--greedy"]
    assert main([*arguments, "--backend", "torch", "--dtype", "float32", "--exact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["usage"]["completion_tokens"] == 5
    if not torch.cuda.is_available():
        assert main([*arguments, "--device", "cuda"]) == 2
        assert "device is 'cuda', but PyTorch finds no CUDA devices; use auto or cpu" in capsys.readouterr().err


def test_certify_tells_how_often_texts_part(tmp_path: Path) -> None:
    """On torch in bfloat16, where a draft may change a text; in the exact mode it does not."""
    folder = tmp_path / "model"
    torch_folder(folder, "llama", dtype=torch.bfloat16)
    items = (PromptItem("a", "toy", ("abc abc",)), PromptItem("b", "toy", ("hello",)))
    sampling = SamplingParams(max_new_tokens=12, temperature=1.0, seed=0)
    plan = CertifyPlan(sampling=sampling, samples=20, sample_tokens=3, sample_prompts=1)
    for exact in (False, True):
        pair = load_pair(folder, str(folder), backend="torch", exact=exact, num_draft_tokens=3)
        certificate = certify(pair, items, plan)
        origin: dict[str, Any] = {}
        value = certificate_json(certificate, plan, "model", origin)
        for kind in ("greedy", "sampled"):
            parted = value[kind]["replies"] - value[kind]["identical"]
            assert (value[kind]["divergence_rate"] > 0) == (parted > 0)
        if exact:
            assert certificate.verdict == "identical"


def test_random_modules_are_not_all_alike() -> None:
    """What the tests of parity rest on."""
    one, other = (random_module("llama", seed=seed).lm_head.weight for seed in (0, 1))
    assert not torch.equal(one, other)
