"""Who, what and where of a result: kept beside every measurement, so that a number can be traced and made again."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

__all__ = ["Provenance", "collect", "file_sha256", "machine", "version"]

# What decides which kernels run, in the order of their age (names of Linux's /proc/cpuinfo).
ISA_FLAGS: Final = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a result came from.

    ``date`` is UTC, ISO 8601. ``cpus``: those that this process may use. ``git_commit`` ends in "+" when the checkout
    had changes that were not committed; None outside a checkout. ``files`` maps names of input files to their SHA-256.
    """

    draftsmith: str
    python: str
    platform: str
    cpu: str
    cpus: int
    isa: tuple[str, ...]
    memory_bytes: int | None
    git_commit: str | None
    date: str
    files: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Only what JSON knows."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "isa": list(self.isa), "files": dict(self.files)}


def collect(files: Iterable[Path] = ()) -> Provenance:
    """The provenance of this process, here and now. ``files`` are read in full for their hashes (OSError if gone)."""
    cpu, isa = _cpu()
    return Provenance(
        draftsmith=version(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=platform.platform(),
        cpu=cpu,
        cpus=_usable_cpus(),
        isa=isa,
        memory_bytes=_memory_bytes(),
        git_commit=_git_commit(Path(__file__).parent),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        files=MappingProxyType({path.name: file_sha256(path) for path in files}),
    )


def machine() -> tuple[str, tuple[str, ...], int]:
    """The processor's name, its instruction sets, and how many of them this process may use."""
    return (*_cpu(), _usable_cpus())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version() -> str:
    """Of the installed package."""
    from importlib import metadata  # slow to import, and every start of the program imports this module

    try:
        return metadata.version("draftsmith")
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Name and instruction sets of the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set((values.get("flags") or values.get("Features") or "").split())
    return values.get("model name") or platform.machine(), tuple(flag for flag in ISA_FLAGS if flag in flags)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _git_commit(folder: Path) -> str | None:
    """The commit of the checkout that the package runs from. An installed package lies in no checkout of its own."""
    if "site-packages" in folder.parts or not any((parent / ".git").exists() for parent in folder.parents):
        return None
    import subprocess  # as above

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
