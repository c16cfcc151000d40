"""export.json: what an exported folder was made from, by what, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draftsmith.export.source import RECORD, Source
from draftsmith.provenance import collect

__all__ = ["write_record"]


def write_record(folder: Path, kind: str, sources: Mapping[str, Source], report: Mapping[str, Any]) -> None:
    """Write the record into ``folder``. The sources' files are read in full for their hashes."""
    made_by = collect().as_dict()
    record = {
        "kind": kind,
        "sources": {role: source.origin() for role, source in sources.items()},
        "result": dict(report),
        "made_by": {name: made_by[name] for name in ("draftsmith", "git_commit", "date")},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
