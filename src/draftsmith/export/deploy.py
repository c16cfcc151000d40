"""A target and a draft as a folder from which an engine starts: the draft's weights, configs, a launch command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from draftsmith.checkpoint.atomic_folder import atomic_folder
from draftsmith.checkpoint.progress import Progress, no_progress
from draftsmith.checkpoint.reference import HubReference, parse_reference
from draftsmith.errors import UsageError
from draftsmith.export.engines import Deployment, llama_cpp_files, sglang_files, vllm_files
from draftsmith.export.gguf import write_gguf_export
from draftsmith.export.hf import write_hf_export
from draftsmith.export.pair import Engine, FittedPair, fit
from draftsmith.export.record import write_record
from draftsmith.export.source import Source, check_destination
from draftsmith.quant import BlockType

__all__ = ["PairPlan", "export_pair"]

_FILES: Final[Mapping[Engine, Callable[[Deployment], dict[str, str]]]] = MappingProxyType(
    {"vllm": vllm_files, "sglang": sglang_files, "llama.cpp": llama_cpp_files}
)
MAX_DRAFT_TOKENS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan:
    """What to make. ``deployed_at``: where the folder will lie when it is used; None is where it is written.
    ``copy_target``: write the target too, in the engine's format. ``dtype`` for folders, ``block_type`` for GGUF."""

    engine: Engine
    out: Path
    num_draft_tokens: int = 4
    pad_vocab: bool = False
    copy_target: bool = False
    deployed_at: str | None = None
    dtype: str | None = None
    block_type: BlockType | None = None
    tensor_parallel_size: int = 1
    max_replicas: int = 4
    force: bool = False

    def __post_init__(self) -> None:
        limits = {"num_draft_tokens": MAX_DRAFT_TOKENS, "tensor_parallel_size": 64, "max_replicas": 10_000}
        for name, highest in limits.items():
            if not 1 <= getattr(self, name) <= highest:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is {getattr(self, name)}; it must be from 1 to {highest}")
        if self.deployed_at is not None and not self.deployed_at.startswith("/"):
            raise UsageError(f"--deployed-at is {self.deployed_at!r}; it must be an absolute path")


def export_pair(plan: PairPlan, target: Source, draft: Source, progress: Progress = no_progress) -> dict[str, Any]:
    """Write the folder, atomically; what it holds, for people.

    Raises UsageError or TokenizerError when the engine would refuse the pair, and what writing a model raises.
    """
    for source in (target, draft):
        check_destination(plan.out, source.checkpoint.path, force=plan.force, folder=True)
    pair = fit(plan.engine, target, draft, pad_vocab=plan.pad_vocab)
    place_there = plan.deployed_at or str(plan.out.absolute())
    suffix = ".gguf" if plan.engine == "llama.cpp" else ""
    where, revision = _target_there(plan, target, f"{place_there}/target{suffix}")
    deployment = Deployment(
        name=target.name,
        target=where,
        draft=f"{place_there}/draft{suffix}",
        folder=place_there,
        num_draft_tokens=plan.num_draft_tokens,
        max_context=target.weights.config.max_context,
        revision=revision,
        other_tokens=not pair.same_tokens,
        tensor_parallel_size=plan.tensor_parallel_size,
        max_replicas=plan.max_replicas,
    )
    files = _FILES[plan.engine](deployment)
    with atomic_folder(plan.out, replace=plan.force) as place:
        _write_models(plan, place, target, draft, pair, progress)
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
        (place / "launch.sh").chmod(0o755)
        report = {
            "path": str(plan.out),
            "engine": plan.engine,
            "num_bytes": sum(path.stat().st_size for path in place.rglob("*") if path.is_file()),
            "target": where,
            "same_tokens": pair.same_tokens,
            "vocabulary": pair.draft.config.vocab_size,
            "num_draft_tokens": plan.num_draft_tokens,
            "files": sorted(files),
            "notes": list(pair.notes),
        }
        write_record(place, plan.engine, {"target": target, "draft": draft}, report)
    report["commands"] = [f"sh {plan.out / 'launch.sh'}"]
    return report


def _target_there(plan: PairPlan, target: Source, copied: str) -> tuple[str, str | None]:
    """How the engine finds the target, and its revision on the hub. Raises UsageError when it could not read it."""
    if plan.copy_target:
        return copied, None
    is_file = target.checkpoint.kind == "gguf"
    if is_file != (plan.engine == "llama.cpp"):
        kind, wanted = ("GGUF file", "a Hugging Face folder") if is_file else ("Hugging Face folder", "a GGUF file")
        raise UsageError(
            f"the target {target.reference} is a {kind}, and {plan.engine} reads {wanted}; add --copy-target, which "
            "writes one beside the draft"
        )
    parsed = parse_reference(target.reference)
    if isinstance(parsed, HubReference) and not is_file:
        return parsed.name, target.revision
    return str(target.checkpoint.path.absolute()), None


def _write_models(
    plan: PairPlan, place: Path, target: Source, draft: Source, pair: FittedPair, progress: Progress
) -> None:
    if plan.engine == "llama.cpp":
        fitted = draft.with_weights(pair.draft)
        write_gguf_export(fitted, place / "draft.gguf", plan.block_type, progress)
        if plan.copy_target:
            write_gguf_export(target, place / "target.gguf", plan.block_type, progress)
        return
    (place / "draft").mkdir()
    # With the target's own tokenizer files the two cannot differ in anything that an engine may compare.
    twin = target.checkpoint.path if pair.same_tokens and target.checkpoint.kind == "folder" else None
    write_hf_export(draft, place / "draft", dtype=plan.dtype, weights=pair.draft, tokenizer_of=twin, progress=progress)
    if plan.copy_target:
        (place / "target").mkdir()
        write_hf_export(target, place / "target", dtype=plan.dtype, progress=progress)
