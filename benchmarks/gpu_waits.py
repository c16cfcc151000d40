"""A part of ``benchmarks.gpu``: how often the host waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from unittest.mock import patch

import torch

from benchmarks.gpu_parts import DRAFT_LENGTHS, Found, Setting, Verdict, draft_run
from draftsmith.model.protocol import CheckRun, TokenRun, UnseenRun
from draftsmith.model.torch_backend import TorchModel, transfer
from draftsmith.model.torch_backend.cache import TorchCache

REPEATS = 6  # graphs are captured in the third


def waits(setting: Setting) -> Found:
    """In a draft, in a check, and in a round in which both are one."""
    target, draft = setting.model(setting.module("1.1B")), setting.model(setting.module("1.1B", num_hidden_layers=2))
    cache, other = target.new_cache(), draft.new_cache()
    for model, its in ((target, cache), (draft, other)):
        model.forward([TokenRun(its, setting.prompt)])

    def counted(work: Callable[[int], object], k: int) -> int:
        for _ in range(REPEATS):
            count = _waits_of(setting, work, k)
            for its in (cache, other):
                its.truncate(len(setting.prompt))
        return count

    def drafts(k: int) -> object:
        return draft.draft([draft_run(other, k)])

    def checks(k: int) -> object:
        return target.forward([TokenRun(cache, setting.text(k + 1), num_logits=k + 1)])

    def does_both(k: int) -> object:
        return _unseen_round(target, cache, draft, other, k)

    rows: list[list[object]] = [[k, *(counted(work, k) for work in (drafts, checks, does_both))] for k in DRAFT_LENGTHS]
    most = max(int(str(row[-1])) for row in rows)
    verdict = Verdict("the host waits once in a round, whatever its length", str(most), most <= 1)
    header = ["draft length", "waits in a draft", "in a check", "in a round whose draft is checked unseen"]
    return Found("As torch counts them; on a processor, transfers to the host.", header, rows, [verdict])


def _unseen_round(target: TorchModel, cache: TorchCache, draft: TorchModel, other: TorchCache, k: int) -> object:
    """k tokens are drafted and checked, and then the host looks."""
    [unseen] = draft.draft_unseen([UnseenRun(other, [7], k)])
    return target.check([CheckRun(cache, [7], unseen)])


def _waits_of(setting: Setting, work: Callable[[int], object], k: int) -> int:
    """How often the host waited for the device while it did ``work`` for k draft tokens."""
    if setting.device.type != "cuda":
        with patch.object(transfer, "fetch", wraps=transfer.fetch) as fetch:
            work(k)
        return fetch.call_count
    setting.wait()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work(k)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
