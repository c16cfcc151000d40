"""Files mapped into memory, read-only: nothing is read until it is used, and nothing is copied."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from draftsmith.errors import CheckpointError

__all__ = ["map_file"]


def map_file(path: Path) -> npt.NDArray[np.uint8]:
    """The file's bytes as a read-only uint8 [size] array. The mapping lives as long as a view of it.

    Raises CheckpointError when the file is missing, empty or unreadable.
    """
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}; check the path") from None
    except ValueError:
        raise CheckpointError(f"{path} is empty; fetch or write it again") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the path and its permissions") from None
    return np.frombuffer(mapping, np.uint8)
