"""card: metadata that the hub's own library reads, both languages, unknown marked unknown, numbers from results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from draftsmith.cli import main
from draftsmith.errors import UsageError
from draftsmith.measure.card import make_card, read_facts
from draftsmith.measure.card_words import WORDS
from tests.support.stub_hub import stub_hub

FACTS = Path(__file__).parents[2] / "docs" / "cards" / "tinyllama-1.1b-32k-instruct.toml"
BENCH: dict[str, Any] = {
    "speculative": {"drafter": "a|b", "speedup_ci95": [1.2, 1.9]}, "speedup": 1.5, "acceptance_rate": 0.712,
    "mean_acceptance_length": 3.4, "draft_cost_c": 0.2, "provenance": {"cpu": "Made up", "date": "2026-01-01"},
}  # fmt: skip
CERTIFY = {"verdict": "identical", "provenance": BENCH["provenance"]}


def metadata(text: str) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    values: dict[str, Any] = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    return values


@pytest.mark.parametrize("language", ["en", "es"])
def test_the_card_of_tinyllama(language: str) -> None:
    text = make_card(read_facts(FACTS), language)
    assert metadata(text) == {
        "language": ["en"],
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": ["Doctor-Shotgun/TinyLlama-1.1B-32k"],
        "tags": ["tinyllama", "alpaca", "long-context", "speculative-decoding"],
    }
    words = WORDS[language]
    for key in ("general", "description", "format", "training", "requirements", "parameters", "usage", "capabilities",
                "limitations", "results", "risks", "licence"):  # fmt: skip
        assert f"\n## {words[key]}\n" in text
    assert f"**{words['license']}:** {words['unknown']}" in text
    assert f"**{words['datasets']}:** {words['unknown']}" in text
    assert words["not_aligned"] in text
    assert words["one_language"] in text
    assert words["closed_only"] in text
    assert words["none_measured"] in text
    assert "### Instruction:\n{system prompt}" in text
    assert "{" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # no table of languages left unread


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("facts", sorted(FACTS.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_every_card_passes_the_hubs_check(facts: Path, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is the hub library's own; what answers it is a stand-in with the rules of the hub's documentation."""
    from huggingface_hub import ModelCard, constants

    text = make_card(read_facts(facts), language)
    with stub_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        ModelCard(text).validate()
        for damaged in (text.replace("license:", "licence:"), text.replace('"en"', '"English!"')):
            with pytest.raises(ValueError, match=r"licen|language"):
                ModelCard(damaged).validate()


@pytest.mark.parametrize("language", ["en", "es"])
def test_the_card_of_our_own_draft_is_complete(language: str) -> None:
    """Nothing about it is unknown but where it lies on the hub, in either language."""
    text = make_card(read_facts(FACTS.parent / "smollm2-135m-instruct-draft.toml"), language)
    unknown = WORDS[language]["unknown"]
    lines = [line for line in text.splitlines() if re.search(rf"\b{unknown}\b", line, flags=re.IGNORECASE)]
    assert lines == [f"- **{WORDS[language]['repository']}:** {unknown}", unknown.capitalize() + "."]


@pytest.mark.parametrize("language", ["en", "es"])
def test_the_pages_in_docs_are_what_the_facts_give(language: str) -> None:
    page = FACTS.with_name(f"{FACTS.stem}.{language}.md")
    assert page.read_text(encoding="utf-8") == make_card(read_facts(FACTS), language)


def test_both_languages_have_the_same_words() -> None:
    assert WORDS["en"].keys() == WORDS["es"].keys()
    for key in WORDS["en"]:
        assert re.findall(r"\{\w+\}", WORDS["en"][key]) == re.findall(r"\{\w+\}", WORDS["es"][key])


def test_numbers_come_from_results() -> None:
    text = make_card({"name": "x"}, "en", [("bench.json", BENCH), ("certify.json", CERTIFY)])
    assert "| Speed-up with a\\|b | 1.50 [1.20, 1.90] |" in text
    assert "| Acceptance rate, mean acceptance length | 71.2%, 3.40 |" in text
    assert "| Losslessness certificate | identical |" in text
    assert "Measured on Made up, 2026-01-01." in text
    with pytest.raises(UsageError, match="no result of"):
        make_card({"name": "x"}, "en", [("x.json", {})])
    with pytest.raises(UsageError, match="but lacks 'speculative'"):
        make_card({"name": "x"}, "en", [("x.json", {"draft_cost_c": 1})])


def test_what_is_not_known_is_unknown() -> None:
    text = make_card({"name": "x"}, "en")
    assert metadata(text)["license"] == "unknown"
    assert "**Author:** unknown" in text
    assert WORDS["en"]["alignment_unknown"] in text
    assert "English only" not in text


def test_facts_cannot_become_metadata() -> None:
    facts = {"name": "x", "license": "mit\nlanguage: xx", "tags": ['a"b', "c: d", "---"]}
    data = metadata(make_card(facts, "en"))
    assert data["license"] == "mit\nlanguage: xx"
    assert data["tags"] == ['a"b', "c: d", "---", "speculative-decoding"]
    assert "language" not in data


def test_the_stage_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stage.json").write_text(json.dumps({"settings": {"learning_rate": 3e-4, "steps": 100, "model": None}}))
    page = tmp_path / "README.md"
    assert main(["card", str(FACTS), "--stage", str(tmp_path), "--language", "es", "--output", str(page)]) == 0
    assert "| `learning_rate` | `0.0003` |" in page.read_text()
    assert "`model`" not in page.read_text()  # it is not stated
    assert main(["card", str(FACTS)]) == 0
    assert capsys.readouterr().out.startswith('---\nlanguage: ["en"]\n')


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("colour = 1", "unknown key colour"),
        ("name = ", "is not TOML"),
        ("name = 1" + "0" * 5000, "is not TOML"),  # more digits than Python reads
        ("author = 'x'", "has no name"),
        ("name = 'x'\nrisks = 'many'", "risks must be a list"),
        ("name = 'x'\nsafety_alignment = 'yes'", "must be true or false"),
    ],
)
def test_wrong_facts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str) -> None:
    path = tmp_path / "facts.toml"
    path.write_text(content)
    assert main(["card", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_other_languages_are_refused() -> None:
    with pytest.raises(UsageError, match="must be en or es"):
        make_card({"name": "x"}, "fr")
