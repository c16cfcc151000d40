"""How much memory there is, asked before it is taken."""

from __future__ import annotations

from pathlib import Path

from draftsmith.errors import OutOfMemory

__all__ = ["available_memory", "check_memory"]

_MEMINFO = Path("/proc/meminfo")
# Linux's control groups, version 2 and version 1: limit and use of this process's group, and what the use is made of.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
)


def available_memory() -> int | None:
    """Bytes that can still be taken without swapping: the machine's, or less in a container. None if unknown."""
    bounds = [int(line.split()[1]) * 1024 for line in _lines(_MEMINFO) if line.startswith("MemAvailable:")]
    for folder, limit_name, use_name, stat_name, page_cache in _CGROUPS:
        numbers = [*_lines(folder / limit_name), *_lines(folder / use_name)]
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):
            limit, use = map(int, numbers)
            stat = dict(line.split() for line in _lines(folder / stat_name))
            reclaimable = sum(int(stat.get(name, 0)) for name in page_cache)  # the page cache yields under pressure
            bounds.append(max(0, limit - use + reclaimable))
    return min(bounds, default=None)


def check_memory(needed: int, what: str) -> None:
    """Raises OutOfMemory when ``needed`` bytes for ``what`` are more than there are."""
    available = available_memory()
    if available is not None and needed > available:
        raise OutOfMemory(
            f"{what} needs about {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free; "
            "close other programs, choose a smaller model or give --quantize 4bit"
        )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
