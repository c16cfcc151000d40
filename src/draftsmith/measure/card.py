"""``card``: a Hugging Face model card from facts (a TOML file), the stage that made the model, and measurements.

A fact is a text, or a table with one text for each language: ``use = {en = "...", es = "..."}``. What is not given is
marked unknown; nothing is guessed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftsmith.errors import UsageError
from draftsmith.measure.card_words import LANGUAGES, WORDS
from draftsmith.measure.report import kind_of

__all__ = ["Facts", "make_card", "read_facts"]

Facts = Mapping[str, Any]

GENERAL = ("repository", "author", "size", "architecture", "kind", "context", "use")
TRAINING = ("method", "duration", "hardware", "data", "purpose")
LISTS = ("requirements", "capabilities", "limitations", "risks")
KNOWN = {
    "name", "description", "languages", "license", "license_note", "base_model", "datasets", "tags", "prompt_format",
    "training", "loading", "parameters", "usage", "library", "safety_alignment", "open_environments", *GENERAL, *LISTS,
}  # fmt: skip
_ALPACA = """```text
### Instruction:
{system prompt}

### Input:
{user message}

### Response:
{reply}

### Input:
...
```"""


def read_facts(path: Path) -> Facts:
    """The facts of a TOML file. Raises UsageError when it cannot be read or has keys or values of the wrong kind."""
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give a TOML file of facts") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML ({' '.join(str(error).split())[:80]}); correct it") from None
    unknown = facts.keys() - KNOWN
    if unknown:
        raise UsageError(f"{path} has the unknown key {min(unknown)}; known are {', '.join(sorted(KNOWN))}")
    if not isinstance(facts.get("name"), str):
        raise UsageError(f"{path} has no name; give the model's name as a text")
    tables = ("training", "loading", "parameters")
    for key, kind in (*((name, dict) for name in tables), *((name, list) for name in (*LISTS, "languages"))):
        if not isinstance(facts.get(key, kind()), kind):
            raise UsageError(f"{path}: {key} must be a {'table' if kind is dict else 'list'}; see docs/measuring.md")
    for key in ("safety_alignment", "open_environments"):
        if not isinstance(facts.get(key, False), bool):
            raise UsageError(f"{path}: {key} must be true or false; leave it out if it is unknown")
    return facts


def make_card(
    facts: Facts, language: str, results: Sequence[tuple[str, Any]] = (), stage: Mapping[str, Any] | None = None
) -> str:
    """The card, metadata first. ``results``: objects of bench, certify and eval with their files' names.

    Raises UsageError for another language than en and es, or for results that are none.
    """
    if language not in LANGUAGES:
        raise UsageError(f"language is {language!r}; it must be {' or '.join(LANGUAGES)}")
    words = WORDS[language]

    def tell(value: Any) -> str:
        if isinstance(value, Mapping):
            value = value.get(language)
        if isinstance(value, list):
            value = ", ".join(str(part) for part in value)
        return words["unknown"] if value in (None, "") else str(value)

    def items(key: str) -> list[str]:
        return [f"- {tell(value)}" for value in facts.get(key, [])]

    general = [f"- **{words[key]}:** {tell(facts.get(key))}" for key in GENERAL]
    general.append(f"- **{words['languages']}:** {tell(facts.get('languages'))}")
    training = [f"- **{words[key]}:** {tell(facts.get('training', {}).get(key))}" for key in TRAINING]
    parameters = [
        (f"`{name}`", f"`{value}`") for key in ("parameters", "loading") for name, value in facts.get(key, {}).items()
    ]
    sections = [
        ("general", general),
        ("description", [tell(facts.get("description"))]),
        ("format", _format(facts, words)),
        ("training", [*training, *_stage(stage, words)]),
        ("requirements", items("requirements")),
        ("parameters", _table((words["parameter"], words["value"]), parameters) if parameters else []),
        ("usage", [tell(facts["usage"]) if "usage" in facts else _usage(facts)]),
        ("capabilities", items("capabilities")),
        ("limitations", items("limitations")),
        ("results", _results(results, words)),
        ("risks", [*_warnings(facts, words), *items("risks")]),
        (
            "licence",
            [
                f"- **{words[key]}:** {tell(facts.get(key))}"
                for key in ("license", "license_note", "base_model", "datasets")
            ],
        ),
    ]
    parts = [_metadata(facts), f"# {facts['name']}", ""]
    for title, lines in sections:
        parts += [f"## {words[title]}", "", *(lines or [words["unknown"].capitalize() + "."]), ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def _metadata(facts: Facts) -> str:
    """YAML for the hub. JSON's strings and lists are YAML too, so nothing in a fact can become structure."""
    values: dict[str, Any] = {
        "language": facts.get("languages"),
        "license": str(facts.get("license", "unknown")).lower(),
        "library_name": facts.get("library", "transformers"),
        "pipeline_tag": "text-generation",
        "base_model": facts.get("base_model"),
        "datasets": facts.get("datasets"),
        "tags": [*facts.get("tags", []), "speculative-decoding"],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value]
    return "\n".join(["---", *lines, "---", ""])


def _format(facts: Facts, words: Mapping[str, str]) -> list[str]:
    kind = facts.get("prompt_format")
    if kind == "alpaca":
        return [words["alpaca"], "", _ALPACA]
    return [words["chat"]] if kind == "chat" else []


def _usage(facts: Facts) -> str:
    def call(first: list[str], key: str) -> str:
        values = facts.get(key, {}).items()
        named = [f"{name}={json.dumps(v) if isinstance(v, str) else repr(v)}" for name, v in values]
        return "".join(f"    {argument},\n" for argument in [*first, *named])

    prompt = "### Input:\nHello.\n\n### Response:\n" if facts.get("prompt_format") == "alpaca" else "Hello."
    made = call(['"text-generation"', f"model={json.dumps(str(facts.get('repository', facts['name'])))}"], "loading")
    asked = call([json.dumps(prompt)], "parameters")
    return (
        "```python\nfrom draftsmith import pipeline\n\n"
        f"pipe = pipeline(\n{made})\nreplies = pipe(\n{asked})\n"
        'print(replies[0]["generated_text"])\n```'
    )


def _stage(stage: Mapping[str, Any] | None, words: Mapping[str, str]) -> list[str]:
    if stage is None:
        return []
    settings = stage.get("settings")
    stated = settings if isinstance(settings, Mapping) else {}
    rows = [(f"`{name}`", f"`{value}`") for name, value in stated.items() if value is not None]
    return ["", *_table((words["setting"], words["value"]), rows)]


def _warnings(facts: Facts, words: Mapping[str, str]) -> list[str]:
    told = []
    if not facts.get("safety_alignment"):
        told.append(f"- {words['not_aligned' if 'safety_alignment' in facts else 'alignment_unknown']}")
    if facts.get("languages") == ["en"]:
        told.append(f"- {words['one_language']}")
    if not facts.get("open_environments"):
        told.append(f"- {words['closed_only']}")
    return told


def _results(results: Sequence[tuple[str, Any]], words: Mapping[str, str]) -> list[str]:
    rows: list[tuple[str, str]] = []
    places: list[str] = []
    for name, value in results:
        kind = kind_of(value, name)
        try:
            rows += _rows(kind, value, words)
            origin = value["provenance"]
            places.append(words["measured_on"].format(cpu=origin["cpu"], date=origin["date"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"{name} looks like a result of {kind} but lacks {error}; make it again") from None
    if not rows:
        return [words["none_measured"]]
    return [*_table(("", words["value"]), rows), "", " ".join(dict.fromkeys(places)), "", words["definitions"]]


def _rows(kind: str, value: Any, words: Mapping[str, str]) -> list[tuple[str, str]]:
    if kind == "bench":
        fast = value["speculative"]
        low, high = fast["speedup_ci95"]
        gain = f"{value['speedup']:.2f} [{low:.2f}, {high:.2f}]"
        lengths = f"{value['acceptance_rate']:.1%}, {value['mean_acceptance_length']:.2f}"
        return [(words["result_bench"].format(drafter=fast["drafter"]), gain), (words["result_acceptance"], lengths)]
    if kind == "certify":
        return [(words["result_certify"], words[value["verdict"]])]
    rows = []
    for task, found in value.get("tasks", {}).items():
        if task == "perplexity":
            rows.append((words["result_perplexity"], f"{found['perplexity']:.3f}"))
        elif task == "format":
            rows.append((words["result_format"], f"{found['adherence']:.0%}"))
        elif task != "acceptance":
            rows.append((words["result_found"].format(task=task), f"{found['accuracy']:.0%}"))
    return rows


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {left} | {right} |" for left, right in cells)]
