"""A server with real weights, for clients that are too heavy to be installed for every run of the tests.

``docs/results`` says with which versions they were run last. Needs the default model in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from draftsmith.checkpoint.reference import resolve
from draftsmith.engine import DEFAULT_TARGET, EngineLimits, EngineOptions
from draftsmith.errors import HubError
from draftsmith.server.options import ServerOptions
from draftsmith.server.run import load
from tests.support.serving import Running, serving

MODEL = "smollm2"


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    try:
        resolve(DEFAULT_TARGET, local_only=True)
    except HubError as error:
        pytest.skip(str(error))
    loaded = load(DEFAULT_TARGET, "auto", EngineOptions(max_context=4096), EngineLimits(), name=MODEL)
    with serving(loaded, ServerOptions(port=0)) as found:
        yield found
