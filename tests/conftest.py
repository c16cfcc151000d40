"""What every test gets: no network, no settings or caches of the person who runs it, few threads, steady hypothesis."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before any test module imports them: the oracles' thread pools would fight over the cores with the engine's own.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# No deadline: a shared machine stalls at times. Derandomised in CI, so that a red run can be run again.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

_SETTINGS = ("DRAFTSMITH_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_")
_LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True)
def clean_environment(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No setting leaks in from outside. Tests marked slow keep the user's cache: they need the real weights in it."""
    slow = request.node.get_closest_marker("slow") is not None
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        if not (slow and name == "DRAFTSMITH_CACHE") and not name.startswith("DRAFTSMITH_TEST_"):
            monkeypatch.delenv(name)
    if not slow:
        monkeypatch.setenv("DRAFTSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails the test that tries it."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(_LOOPBACK):
            pytest.fail(f"a test tried to connect to {address}; tests run offline")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]
