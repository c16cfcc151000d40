"""Numbered pieces of work on the workers of Ray, by Ray Data: on this machine's processors or on a cluster's.

Each worker is an actor that prepares itself once (loads a model, say) and then does one piece after another. A worker
that dies is replaced, and its piece done again. What pieces are and what they give is up to the caller; results come
back as bytes, so nothing is asked of the nodes but draftsmith and the files that the work reads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from draftsmith import errors
from draftsmith.errors import DraftsmithError, UsageError

__all__ = ["Start", "check_ray", "on_ray", "seen_from_anywhere"]

Start = Callable[[], Callable[[int], bytes]]
"""Called once in each worker, after it was sent there: returns what does the piece with a given number."""


def check_ray(workers: int) -> None:
    """Raises UsageError when there are to be no workers, or Ray is not installed."""
    if workers < 1:
        raise UsageError(f"--ray-workers is {workers}; it must be 1 or more")
    missing = [package for package in ("ray", "pyarrow") if find_spec(package) is None]
    if missing:
        raise UsageError(f"Ray workers need {' and '.join(missing)}; run: pip install 'draftsmith[ray]'")


def on_ray(start: Start, numbers: Sequence[int], workers: int) -> Iterator[tuple[int, bytes]]:
    """(number, result) for each piece, as they are done, by so many workers.

    They run on the cluster that RAY_ADDRESS names, else on this machine. A worker takes one of Ray's processors, and an
    equal share of its GPUs where there are some. Raises UsageError, DraftsmithError (also those of a worker).
    """
    check_ray(workers)
    if not numbers:
        return
    ray = _connected()
    resources = ray.cluster_resources()
    data = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    done = data.map(
        _Worker,
        fn_constructor_args=(start,),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
        num_cpus=1,
        num_gpus=min(1.0, resources.get("GPU", 0.0) / workers),
    )
    try:
        for row in done.iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"], DraftsmithError)(row["content"].decode())
            yield row["number"], row["content"]
    except ray.exceptions.RayError as error:
        raise DraftsmithError(f"a Ray worker failed: {_last_line(error)}") from error


class _Worker:
    """What Ray makes on each worker."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._work: Callable[[int], bytes] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do one piece; a failure that we can tell in one sentence is a result like another."""
        try:
            self._work = self._work or self._start()
            return {"number": row["number"], "content": self._work(row["number"]), "error": ""}
        except DraftsmithError as error:
            return {"number": row["number"], "content": str(error).encode(), "error": type(error).__name__}


def seen_from_anywhere(reference: str) -> str:
    """A path that is there, in full: workers have other working folders. Anything else (a hub id) as it is."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference


def _connected() -> Any:
    """The module ``ray``, connected, telling nobody about its use and little to the user."""
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal")):
        os.environ.setdefault(name, value)
    ray: Any = import_module("ray")
    import_module("ray.data")
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise DraftsmithError(f"Ray does not start or answer: {_last_line(error)}") from None
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
