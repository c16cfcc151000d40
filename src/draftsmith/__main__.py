"""``python -m draftsmith`` is the ``draftsmith`` command."""

from __future__ import annotations

import sys

from draftsmith.cli import main

if __name__ == "__main__":
    sys.exit(main())
