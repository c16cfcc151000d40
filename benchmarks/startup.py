"""How long until something happens: ``draftsmith --help``, and the first text of the cached default model.

    python -m benchmarks.startup [--repeat 10]

Whole processes, wall clock: from the start of the interpreter to its end (help), or to the first byte of the reply on
standard output (first token). Run it twice on a fresh machine: the first call fetches and packs the model.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.common import add_record_option, report, run_script, table

COMMAND = [sys.executable, "-m", "draftsmith"]
LIMITS = {"help": 0.3, "first token": 1.0}


def help_seconds() -> float:
    """The whole of ``draftsmith --help``."""
    begin = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def first_token_seconds() -> float:
    """``draftsmith generate`` up to the first byte of its reply."""
    begin = time.perf_counter()
    arguments = ["generate", "Hello", "--greedy", "--max-new-tokens", "1", "--quiet"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()  # to the end, so that the process does not write into a closed pipe
    if process.returncode != 0:
        raise SystemExit(f"draftsmith generate ended with {process.returncode}; its own message is above")
    return seconds


def main() -> int:
    """Run, print the table and the JSON line; exit code 1 when a median is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=10)
    add_record_option(parser)
    options = parser.parse_args()
    first_token_seconds()  # fetches, packs, and warms the file cache
    measured = {"help": [help_seconds() for _ in range(options.repeat)]}
    measured["first token"] = [first_token_seconds() for _ in range(options.repeat)]
    medians = {name: statistics.median(values) for name, values in measured.items()}
    rows = [[name, medians[name], min(values), max(values), LIMITS[name]] for name, values in measured.items()]
    shown = [table(["what", "median s", "least s", "most s", "limit s"], rows)]
    report("Time to start", shown, {"median_s": medians, "limit_s": LIMITS, "repeat": options.repeat}, options.record)
    return int(any(medians[name] > LIMITS[name] for name in LIMITS))


if __name__ == "__main__":
    run_script(main)
