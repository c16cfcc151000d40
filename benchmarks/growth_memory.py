"""What two processes with the same model hold in memory, and what they share. Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["two_processes"]

CHILD = """
import json, sys
from pathlib import Path
from draftsmith.checkpoint import open_checkpoint
from draftsmith.model.native import NativeModel
from draftsmith.model.protocol import TokenRun

def kilobytes(file, key):
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(key + ":"))

before = kilobytes("/proc/self/status", "VmRSS")
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    model = NativeModel.load(checkpoint, max_context=2048)
cache = model.new_cache()
model.forward([TokenRun(cache, [7] * 1024)])
model.forward([TokenRun(cache, [7])])
print("ready", flush=True)
sys.stdin.readline()
rollup = "/proc/self/smaps_rollup"
print(json.dumps({
    "weights_mb": model.weight_bytes / 1e6,
    "cache_mb": model.cache_bytes_in_use / 1e6,
    "before_mb": before * 1.024e-3,
    "peak_mb": kilobytes("/proc/self/status", "VmHWM") * 1.024e-3,
    "rss_mb": kilobytes(rollup, "Rss") * 1.024e-3,
    "pss_mb": kilobytes(rollup, "Pss") * 1.024e-3,
    "private_mb": (kilobytes(rollup, "Private_Clean") + kilobytes(rollup, "Private_Dirty")) * 1.024e-3,
}), flush=True)
sys.stdin.readline()
"""


def two_processes(path: Path) -> dict[str, Any]:
    """Megabytes of the second of two processes that have both read 1,024 tokens: before the model is loaded, at the
    peak, resident, its share (PSS), its own. Raises CalledProcessError when one of them fails.
    """
    command = [sys.executable, "-c", CHILD, str(path)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for process in both:  # both are at rest before either looks
            if _line(process) != "ready":
                raise subprocess.CalledProcessError(process.wait(), command)
        found: list[dict[str, Any]] = [json.loads(_tell(process)) for process in both]
        return found[1]
    finally:
        for process in both:
            process.kill()
            process.wait()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _tell(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return _line(process)
