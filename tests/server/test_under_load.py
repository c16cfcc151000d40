"""With real weights: the same tokens alone and beside sixteen others, drafted or not, greedy or seeded."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from draftsmith.checkpoint.reference import resolve
from draftsmith.engine import DEFAULT_TARGET, EngineLimits, EngineOptions
from draftsmith.errors import HubError
from draftsmith.server.options import ServerOptions
from draftsmith.server.run import load
from tests.support.serving import Running, serving

pytestmark = pytest.mark.slow

SEEDED = {"seed": 5, "temperature": 0.9, "top_k": 40, "frequency_penalty": 0.2}
GREEDY = {"temperature": 0}
ASKED = "Explain what a tide table is, step by step."
OTHERS = [f"Write {number + 2} lines about the number {number}, and count them." for number in range(16)]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    try:
        resolve(DEFAULT_TARGET, local_only=True)
    except HubError as error:
        pytest.skip(str(error))
    loaded = load(DEFAULT_TARGET, "auto", EngineOptions(max_context=2048), EngineLimits())
    with serving(loaded, ServerOptions(port=0)) as found:
        yield found


def ask(server: Running, text: str, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 48, "return_pieces": True, **fields}
    reply = server.call("POST", "/v1/chat/completions", body)
    assert reply.status == 200, reply.body
    return reply.json["choices"][0]


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_the_same_tokens_alone_and_beside_sixteen_others(server: Running, sampling: dict[str, Any]) -> None:
    alone = ask(server, ASKED, draft=False, **sampling)["message"]["content"]
    assert ask(server, ASKED, **sampling)["message"]["content"] == alone
    with ThreadPoolExecutor(17) as pool:
        others = [pool.submit(ask, server, text, draft=bool(i % 3), **sampling) for i, text in enumerate(OTHERS)]
        beside = [pool.submit(ask, server, ASKED, draft=draft, **sampling) for draft in (True, False)]
        texts = [one.result()["message"]["content"] for one in beside]
        assert texts == [alone, alone]
        together = [one.result()["message"]["content"] for one in others]
    assert len(set(together)) == len(OTHERS)
    assert together[3] == ask(server, OTHERS[3], draft=True, **sampling)["message"]["content"]
