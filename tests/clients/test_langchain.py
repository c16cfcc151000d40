"""LangChain's OpenAI chat model: whole, streamed, structured, many at once, and tools on a model of letters."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

sys.path.append(str(Path(__file__).parents[2]))
from tests.support.fakes import TOOL_TEMPLATE
from tests.support.serving import Running, running
from tests.support.shared_fakes import SharedFakeModel

langchain_openai = pytest.importorskip("langchain_openai")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Dog(BaseModel):
    """A dog."""

    name: str
    age: int


def chat_model(server: Running, **options: Any) -> Any:
    fixed = {"base_url": server.address + "/v1", "api_key": "none", "seed": 1, "max_retries": 0}
    return langchain_openai.ChatOpenAI(model=server.loaded.model.name, **fixed, **options)


def test_whole_streamed_and_many(server: Running) -> None:
    model = chat_model(server, temperature=0, max_tokens=30)
    whole = model.invoke("Name three colours.")
    assert whole.content
    assert whole.usage_metadata["output_tokens"] <= 30
    assert "".join(part.content for part in model.stream("Name three colours.")) == whole.content
    many = asyncio.run(model.abatch(["Name three colours."] * 4))
    assert [one.content for one in many] == [whole.content] * 4


def test_structured_output(server: Running) -> None:
    model = chat_model(server, temperature=0.7, max_tokens=200)
    assert isinstance(model.with_structured_output(Dog).invoke("Invent a dog."), Dog)


def test_tools() -> None:
    with running(SharedFakeModel(max_context=2048), template=TOOL_TEMPLATE) as server:
        model = chat_model(server, max_tokens=250).bind_tools([Dog], tool_choice="Dog")
        reply = model.invoke("abc", logit_bias={str(ord('"')): 100})
        [call] = reply.tool_calls
        assert call["name"] == "Dog"
        assert call["args"].keys() == {"name", "age"}
