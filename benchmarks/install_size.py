"""How large is an install? The wheels of draftsmith and of everything that it needs, fetched into an empty folder.

    python -m benchmarks.install_size [--limit-mb 60]

Builds draftsmith's own wheel, downloads the others as pip would for a user (constraints.txt applied), prints the
largest and one JSON line, and fails when the sum is over the limit. Needs the package index.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def fetch_wheels(folder: Path) -> dict[str, int]:
    """Bytes of every wheel that ``pip install draftsmith`` would take, by file name."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    own = folder / "own"
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "-w", str(own), str(ROOT)], check=True)
    (wheel,) = own.glob("draftsmith-*.whl")
    pinned = ["-c", str(ROOT / "constraints.txt")]
    everything = str(folder / "all")
    subprocess.run(
        [*pip, "download", "--quiet", "--only-binary", ":all:", *pinned, "-d", everything, wheel], check=True
    )
    return {path.name: path.stat().st_size for path in (folder / "all").glob("*.whl")}


def main() -> int:
    """Print the table and the JSON line; exit code 1 when over the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit-mb", type=float, default=60.0, help="fail above this sum (default 60)")
    limit_mb = parser.parse_args().limit_mb
    with tempfile.TemporaryDirectory() as folder:
        sizes = fetch_wheels(Path(folder))
    total = sum(sizes.values())
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:12]:
        print(f"{size / 1e6:7.2f} MB  {name}")
    own = sum(size for name, size in sizes.items() if name.startswith("draftsmith-"))
    print(f"{total / 1e6:7.2f} MB  in {len(sizes)} wheels")
    print(json.dumps({"total_bytes": total, "wheels": len(sizes), "own_bytes": own, "limit_mb": limit_mb}))
    return int(total > limit_mb * 1e6)


if __name__ == "__main__":
    sys.exit(main())
