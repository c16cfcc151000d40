"""The provenance of a measurement: this process and machine, the options, and the hashes of the weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from draftsmith.checkpoint.reference import resolve
from draftsmith.engine.pruned import EMBEDDED, shipped_drafts
from draftsmith.provenance import collect, file_sha256

__all__ = ["measurement_origin", "weight_files"]

_SUFFIXES = (".safetensors", ".json", ".model", ".gguf")


def weight_files(reference: str, target: str = "") -> list[Path]:
    """The files that make the model ``reference``, which has been loaded before; none for a drafter without files.

    ``embedded`` is the draft that is shipped for ``target``, which ``auto`` takes too where there is one.
    """
    reference = reference.removesuffix("+lookup").removesuffix("+suffix")
    shipped = shipped_drafts()
    if reference == EMBEDDED:  # for another name of a known target, the vocabulary decided: any of them may be it
        return [shipped[target]] if target in shipped else list(shipped.values())
    if reference == "auto":
        return [shipped[target]] if target in shipped else []
    if reference in ("lookup", "suffix", "none"):
        return []
    path = resolve(reference, local_only=True).path
    return sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES) if path.is_dir() else [path]


def measurement_origin(
    models: Mapping[str, str], options: Mapping[str, Any], prompts: Path | None, command: Sequence[str] = ()
) -> dict[str, Any]:
    """``models`` maps roles (target, draft) to references. All files of the models are read for their hashes.

    ``packages`` is there when the torch backend took part: with what the numbers were computed.
    """
    packages = {name: version(name) for name in ("torch", "transformers", "bitsandbytes") if name in sys.modules}
    hashes = {
        role: {file.name: file_sha256(file) for file in weight_files(reference, models.get("target", ""))}
        for role, reference in models.items()
    }
    return {
        **collect([] if prompts is None else [prompts]).as_dict(),
        "models": dict(models),
        "weights_sha256": hashes,
        "options": dict(options),
        "prompts": "built in" if prompts is None else str(prompts),
        "command": list(command),
        **({"packages": packages} if packages else {}),
    }
