"""Which backend runs a model: the one that was asked for, or the one that suits the file and the machine."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from draftsmith.checkpoint import open_checkpoint
from draftsmith.engine.options import Backend, EngineOptions
from draftsmith.errors import UnsupportedModel, UsageError

__all__ = ["choose_backend", "require_torch", "torch_is_installed"]

_GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # looked for first: importing PyTorch takes seconds


def choose_backend(path: Path, options: EngineOptions, gpu_is_there: Callable[[], bool]) -> Backend:
    """``native`` or ``torch`` for the model at ``path``.

    Auto is torch where a device other than the processor is asked for, where the architecture is not native, and for
    Hugging Face folders where a GPU is there; else native. Raises UsageError when what was asked for contradicts
    itself, UnsupportedModel when only torch could run the model and it is not installed.
    """
    on_processor = options.device in ("auto", "cpu")
    if options.backend == "native" and not on_processor:
        raise UsageError(f"device is {options.device!r}, but the native backend runs on the processor; use torch")
    if options.backend != "auto":
        return options.backend
    if not on_processor:
        return "torch"
    try:
        open_checkpoint(path).close()
    except UnsupportedModel as error:
        if path.is_dir() and not torch_is_installed():
            raise UnsupportedModel(f"{error}, or run: pip install 'draftsmith[torch]' for the torch backend") from None
        if not path.is_dir():
            raise
        return "torch"
    on_gpu = path.is_dir() and options.device == "auto" and gpu_is_there()
    return "torch" if on_gpu else "native"


def gpu_is_there() -> bool:
    """Whether PyTorch is installed and has a GPU to run on."""
    if not any(Path(node).exists() for node in _GPU_NODES) or not torch_is_installed():
        return False
    from draftsmith.model.torch_backend.load import pick_device

    return pick_device("auto").type != "cpu"


def torch_is_installed() -> bool:
    """Whether what the extra ``torch`` brings is there."""
    return all(find_spec(package) is not None for package in ("torch", "transformers"))


def require_torch(name: str) -> None:
    """Raises UsageError when the torch backend cannot be imported."""
    if not torch_is_installed():
        raise UsageError(
            f"{name} is to run on the torch backend, which is not installed; run: pip install 'draftsmith[torch]'"
        )
