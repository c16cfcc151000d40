"""From a Hugging Face folder or a GGUF file to a TorchModel. Safetensors and GGUF only, and no code of the model's."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from draftsmith.checkpoint import open_checkpoint
from draftsmith.errors import CheckpointError, DraftsmithError, OutOfMemory, UnsupportedModel, UsageError
from draftsmith.model.memory import check_memory
from draftsmith.model.storage import Dtype, Quantize
from draftsmith.model.torch_backend.experts import expert_tensors, pack_experts
from draftsmith.model.torch_backend.gguf import module_of_checkpoint
from draftsmith.model.torch_backend.model import TorchModel
from draftsmith.model.torch_backend.rope import fix_frequencies

__all__ = ["TorchOptions", "load_torch_model", "pick_device"]

EXACT_WIDTH = 8  # a draft of 7 and the token before it, which a GPU checks in about the time of one
DEFAULT_CONTEXT = 2048  # of models that state none
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # as configurations call them
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "4bit": 0.6, "8bit": 1.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOptions:
    """How to load. ``device``: ``auto`` (the GPUs if there are any, else the processor), ``cpu``, ``cuda``, ``cuda:N``
    or ``mps``. ``dtype`` auto: what the file states. ``threads``: of torch, for all its models in this process.
    ``exact``: logits are to be the same, to the bit, however many tokens are checked together.
    """

    dtype: Dtype = "auto"
    quantize: Quantize | None = None
    device: str = "auto"
    max_context: int | None = None
    threads: int | None = None
    exact: bool = False


def load_torch_model(path: Path, name: str, options: TorchOptions) -> TorchModel:
    """Load the model at ``path``, a Hugging Face folder or a .gguf file. ``name`` is for messages.

    Raises UsageError for a device that is not there or an option that does not fit, CheckpointError when a file is
    missing or damaged, UnsupportedModel when ``transformers`` does not know the model without the model's own code or
    it cannot be used with drafts, OutOfMemory.
    """
    device = pick_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        load = _load_folder if path.is_dir() else _load_gguf
        module, context = load(path, name, options, device)
        width = EXACT_WIDTH if options.exact else None
        graphs = device.type == "cuda" and not _has_experts(module.config)
        model = _first_step(module, max_context=context, name=name, exact_width=width, graphs=graphs)
        if options.exact:
            _check_exact(model)
        return model
    except (torch.OutOfMemoryError, MemoryError):
        raise OutOfMemory(f"{device} has not enough memory for {name}; quantise it or take a smaller model") from None


def _first_step(module: Any, *, name: str, **options: Any) -> TorchModel:
    """The model, which has read a token. Raises CheckpointError when it cannot."""
    try:
        return TorchModel(module, name=name, **options)
    except (DraftsmithError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # weights that are not in the form that config.json says, or a kernel that is missing
        raise CheckpointError(f"{name} is loaded, but its first token fails: {_first_line(error)}") from error


def _check_exact(model: TorchModel) -> None:
    """Raises UsageError when logits depend on how many tokens are checked together all the same."""
    if _has_experts(model.module.config):
        raise UsageError(
            f"exact is on, but each expert of {model.name} sees as many tokens as happen to choose it, so its sums "
            "cannot be of one shape; leave exact out"
        )
    difference = model.find_difference()
    if difference is not None:
        raise UsageError(
            f"exact is on, but {model.name} on {model.device} in {str(model.dtype).removeprefix('torch.')} gives other "
            f"logits (by up to {difference:.2g}) when tokens are checked together; leave it out or take native"
        )


def _has_experts(config: Any) -> bool:
    """Whether the model is a mixture of experts."""
    text = config.get_text_config(decoder=True)
    return any((getattr(text, key, None) or 0) > 1 for key in _EXPERTS)


def pick_device(name: str) -> torch.device:
    """Raises UsageError for a device that there is not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device is {name!r}; it must be auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"device is {name!r}, but PyTorch finds {count or 'no'} CUDA devices; use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device is 'mps', but PyTorch finds none here; use auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device is {name!r}; it must be auto, cpu, cuda, cuda:N or mps")
    return device


def _load_gguf(path: Path, name: str, options: TorchOptions, device: torch.device) -> tuple[Any, int]:
    if options.quantize is not None:
        raise UsageError(
            f"quantize is {options.quantize}, but {name} is a GGUF file, whose weights the torch backend unfolds; "
            "take the native backend or a Hugging Face folder"
        )
    with open_checkpoint(path) as checkpoint:
        wanted = ("bfloat16" if device.type == "cuda" else "float32") if options.dtype == "auto" else options.dtype
        context = _context(options.max_context, checkpoint.config.max_context, name)
        count = sum(tensor.num_rows * tensor.shape[-1] for tensor in checkpoint.tensors.values())
        _check_memory(count * _BYTES[wanted], name, device)
        return module_of_checkpoint(checkpoint, getattr(torch, wanted), device, context), context


def _load_folder(path: Path, name: str, options: TorchOptions, device: torch.device) -> tuple[Any, int]:
    stated = _stated_config(path, name)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedModel(f"{name} is a {config.model_type} model, which is no causal language model")
    context = _context(options.max_context, _stated_context(config), name)
    arguments = _placement(options, device)
    if options.quantize is not None:
        arguments["quantization_config"] = _quantization(options, stated, name, device)
        if _has_experts(config):
            arguments["device_map"] = {"": "cpu"}  # experts come in 16 bits, and only then are they packed
    _check_memory(_weight_bytes(path, config, options), name, device)
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=options.dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **arguments,
            )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever stands behind it, the reader gets one sentence
        raise CheckpointError(f"transformers cannot load {name}: {_first_line(error)}") from error
    module, report = loaded
    wrong = sorted(report["missing_keys"]) or sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise CheckpointError(f"{name} lacks weights that its config.json asks for, {wrong[0]} first; fetch it again")
    if options.quantize is not None:
        _pack_experts(module, name, options, device)
    if arguments.get("device_map") in (None, {"": "cpu"}):
        module = module.to(device)
    fix_frequencies(module, context)
    return module.eval(), context


def _pack_experts(module: Any, name: str, options: TorchOptions, device: torch.device) -> None:
    """Do what bitsandbytes leaves undone. Raises UsageError, UnsupportedModel where that is not possible."""
    if options.quantize == "4bit":
        pack_experts(module, device)
    elif next(expert_tensors(module), None) is not None:
        raise UsageError(f"quantize is 8bit, which would leave the experts of {name} in 16 bits; take 4bit")


def _stated_config(path: Path, name: str) -> dict[str, Any]:
    """config.json as it is. Raises CheckpointError when there is none, UnsupportedModel for an unknown model."""
    file = path / "config.json"
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(f"there is no {file}; give a Hugging Face folder or a .gguf file") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file} is not JSON; fetch it again") from None
    kind = stated.get("model_type") if isinstance(stated, dict) else None
    if not isinstance(kind, str):
        raise CheckpointError(f"{file} does not state a model_type; fetch it again")
    if kind not in transformers_model_types():
        own_code = "; the code that comes with it is never run" if "auto_map" in stated else ""
        raise UnsupportedModel(
            f"{name} is of the type {kind[:40]!r}, which transformers does not know{own_code}; take another model"
        )
    if not any(path.glob("*.safetensors")):
        raise CheckpointError(f"{name} has no safetensors files; pickles are never read, take another model")
    return dict(stated)


def transformers_model_types() -> frozenset[str]:
    """The types of models that the installed ``transformers`` knows."""
    from transformers.models.auto import configuration_auto

    names: dict[str, str] = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    return frozenset(names)


def _stated_context(config: Any) -> int:
    text = config.get_text_config(decoder=True)
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_CONTEXT


def _context(wanted: int | None, stated: int, name: str) -> int:
    if wanted is not None and wanted > stated:
        raise UsageError(f"max_context is {wanted}; {name} was made for 1 to {stated} tokens")
    return wanted or stated


def _placement(options: TorchOptions, device: torch.device) -> dict[str, Any]:
    """``device_map`` where ``accelerate`` is there: weights go straight to their device, over several if need be."""
    if find_spec("accelerate") is None:
        return {}
    if options.device == "auto" and device.type == "cuda":
        return {"device_map": "auto"}
    return {"device_map": {"": str(device)}} if device.type != "cpu" or options.quantize else {}


def _quantization(options: TorchOptions, stated: dict[str, Any], name: str, device: torch.device) -> Any:
    """Raises UsageError when it cannot be done here."""
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if missing:
        raise UsageError(
            f"quantize is {options.quantize}, which needs {' and '.join(missing)} on the torch backend; run: "
            "pip install 'draftsmith[torch]'"
        )
    if stated.get("quantization_config"):
        raise UsageError(f"quantize is {options.quantize}, but {name} is quantised already; leave it out")
    if options.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    compute = torch.float32 if options.dtype == "auto" and device.type == "cpu" else torch.bfloat16
    if options.dtype != "auto":
        compute = getattr(torch, options.dtype)
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )


def _weight_bytes(path: Path, config: Any, options: TorchOptions) -> float:
    """About what the weights take in main memory, at most; experts are quantised when all of them are there."""
    stored = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    wanted = options.dtype if _has_experts(config) else options.quantize or options.dtype
    own = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return stored * _BYTES[wanted] / _BYTES.get(own, _BYTES["float32"]) if wanted in _BYTES else stored


def _check_memory(needed: float, name: str, device: torch.device) -> None:
    if device.type == "cpu":
        check_memory(int(needed), f"loading {name}")


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no reports of ``transformers``: the progress is ours, and what is missing becomes an error."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that it does without
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
