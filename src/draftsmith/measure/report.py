"""``report``: the results of the other commands on one page, with pictures. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from draftsmith.errors import UsageError
from draftsmith.measure.certificate import certificate_page
from draftsmith.measure.document import Document, Section, reference_name
from draftsmith.measure.figures import Bar, bars, curve, heat_map, timeline

__all__ = ["ResultKind", "kind_of", "report_page"]

ResultKind = Literal["bench", "certify", "plan", "eval"]
_MARKS: dict[str, ResultKind] = {
    "draft_cost_c": "bench", "verdict": "certify", "recommendation": "plan", "tasks": "eval",
}  # fmt: skip


def kind_of(value: Any, name: str) -> ResultKind:
    """Which command wrote the object. Raises UsageError when none did; ``name`` is the file's."""
    if isinstance(value, dict):
        for mark, kind in _MARKS.items():
            if mark in value:
                return kind
    raise UsageError(f"{name} is no result of bench, certify, plan or eval; write one with their --output")


def report_page(results: Sequence[tuple[str, Any]]) -> Document:
    """The page for some results, each with its file's name. Raises UsageError when one lacks what it should hold."""
    sections: list[Section] = []
    origins = []
    for name, value in results:
        kind = kind_of(value, name)
        try:
            sections += _SECTIONS[kind](value)
            origins.append((name, kind, value["provenance"]))
            models = value["provenance"]["models"]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
            what = " ".join(str(error).split())[:60]
            raise UsageError(
                f"{name} looks like a result of {kind} but is incomplete ({what}); make it again"
            ) from None
    title = f"{reference_name(models.get('target', 'target'))} and its drafter"
    lead = "Measured by draftsmith. Every number on this page comes from the files that are listed at its end."
    return Document(title, lead, (*sections, _origin(origins)))


def _bench(value: dict[str, Any]) -> list[Section]:
    fast, plain = value["speculative"], value["plain"]
    low, high = fast["speedup_ci95"]
    groups = [("all", value["speedup"], (low, high))]
    groups += [(name, row["speedup"], tuple(row["speedup_ci95"])) for name, row in value["by_category"].items()]
    rows = [Bar(name, gain, f"{gain:.2f}x [{ends[0]:.2f}, {ends[1]:.2f}]", ends) for name, gain, ends in groups]
    told = (
        f"{reference_name(fast['drafter'])}: {fast['tokens_per_s']:.1f} tokens/s against "
        f"{plain['tokens_per_s']:.1f} plain, {value['speedup']:.2f}x; predicted from the costs "
        f"{fast['predicted_speedup']:.2f}x; the worst prompt {value['worst_prompt_speedup']:.2f}x; identical texts: "
        f"{'yes' if value['identical'] else 'no'}.",
        "Speed-up: speculative / plain tokens per second after the first token, both from one run. The dashed line is "
        "plain decoding; whiskers are 95 % intervals, bootstrap over prompts.",
    )
    places = [Bar(f"token {i}", rate, f"{rate:.0%}") for i, rate in enumerate(fast["acceptance_by_position"], start=1)]
    accepted = (
        f"Acceptance rate {value['acceptance_rate']:.1%} (accepted / draft tokens), mean acceptance length "
        f"{value['mean_acceptance_length']:.2f} (1 + accepted / rounds with a draft: bonus token included). Bars: "
        "accepted in that place of the draft / drafts that had a token there.",
    )
    sections = [
        Section("Speed-up by category", told, _bench_table(value), bars("speed-up by category", rows, mark=1.0)),
        Section("Acceptance by position", accepted, (), bars("acceptance by position", places) if places else ""),
        _costs(value),
        *_roofline(value),
    ]
    rounds = [(r["drafted"], r["accepted"]) for r in value.get("details", {}).get("timeline", [])]
    if rounds:
        legend = (
            "Each column is a round of one reply. Filled: accepted draft tokens; crossed: rejected; hollow: the bonus"
        )
        note = f"{legend} token. Below: tokens written in that round."
        sections.append(Section("Some rounds", (note,), (), timeline("accepted and rejected tokens", rounds)))
    return sections


def _bench_table(value: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows = [("category", "prompts", "plain tokens/s", "speculative tokens/s", "acceptance", "length")]
    for name, row in value["by_category"].items():
        rates = (f"{row['plain_tokens_per_s']:.1f}", f"{row['tokens_per_s']:.1f}", f"{row['acceptance_rate']:.0%}")
        rows.append((name, str(row["prompts"]), *rates, f"{row['mean_acceptance_length']:.2f}"))
    return tuple(rows)


def _costs(value: dict[str, Any]) -> Section:
    measured = value.get("details", {}).get("verify_cost_v", value["verify_cost_v"])
    points = {1.0: 1.0, **{float(size): float(cost) for size, cost in measured.items()}}
    step, share = value["plain"]["step_s"], value["speculative"]["time_share"]
    return Section(
        "What steps cost",
        (
            f"A plain step takes {step * 1000:.1f} ms after {value['provenance']['cost_context']} tokens. A draft step "
            f"costs c = {value['draft_cost_c']:.3f} of it; checking m tokens costs v(m), drawn here.",
            f"Speculative decoding spent {share['target']:.0%} of its time in the target, {share['draft']:.0%} in the "
            f"draft, {share['other']:.0%} elsewhere.",
        ),
        (),
        curve("v(m)", points, x_name="m: tokens checked at once", y_name="v(m): cost in plain steps"),
    )


def _roofline(value: dict[str, Any]) -> list[Section]:
    found = value.get("details", {}).get("roofline")
    if not found:
        return []
    bandwidth = found["read_bandwidth"]
    phases = [(p["phase"], p["bytes"], p["seconds"]) for p in found["phases"]]
    rates = {name: f"{read / spent / 1e9:.1f} GB/s, {read / spent / bandwidth:.0%}" for name, read, spent in phases}
    rows = [Bar(name, read / spent / 1e9, rates[name]) for name, read, spent in phases]
    table = (
        ("phase", "must read", "at best", "takes", "reads at, of the bandwidth"),
        *(
            (n, f"{b / 1e6:.1f} MB", f"{b / bandwidth * 1e3:.2f} ms", f"{s * 1e3:.2f} ms", rates[n])
            for n, b, s in phases
        ),
    )
    note = (
        "Bars: weights, keys and values that the phase must read / the time it takes, and the share of the bandwidth "
        f"that is. The dashed line is what the same threads read from memory at best, {bandwidth / 1e9:.1f} GB/s. A "
        "check reads no more than one token does: where its bar is shorter, arithmetic and not memory is waited for. A "
        "draft small enough to stay in the processor's caches may go beyond the line."
    )
    return [Section("Roofline", (note,), table, bars("bytes read against bandwidth", rows, mark=bandwidth / 1e9))]


def _times(gain: float | None) -> str:
    return "" if gain is None else f"{gain:.2f}x"


def _plan(value: dict[str, Any]) -> list[Section]:
    rows = [
        Bar(
            reference_name(c["draft"]),
            c["predicted_speedup"],
            f"{c['predicted_speedup']:.2f}x at k={c['num_draft_tokens']}",
            tuple(c["predicted_speedup_ci95"]),
        )
        for c in value["candidates"]
    ]
    note = (
        "Bars: predicted speed-up of each candidate at its best fixed length k, with 95 % intervals over prompts. "
        "Measured: in earnest with that k; with auto: with lengths chosen round by round."
    )
    table = (
        ("drafter", "k", "predicted", "measured", "with auto", "acceptance", "length", "c"),
        *(
            (
                reference_name(c["draft"]),
                str(c["num_draft_tokens"]),
                *(_times(c.get(name)) for name in ("predicted_speedup", "measured_speedup", "measured_speedup_auto")),
                f"{c['acceptance_rate']:.0%}",
                f"{c['mean_acceptance_length']:.2f}",
                f"{c['draft_cost_c']:.3f}",
            )
            for c in value["candidates"]
        ),
    )
    advice = value["recommendation"]["advice"]
    for candidate in value["candidates"]:
        advice = advice.replace(candidate["draft"], reference_name(candidate["draft"]))
    return [Section("Plan", (advice, note), table, bars("predicted speed-up", rows, mark=1.0))]


def _eval(value: dict[str, Any]) -> list[Section]:
    sections = []
    for task, found in value["tasks"].items():
        if task == "perplexity":
            points = {float(b["end"]): b["perplexity"] for b in found["by_position"]}
            note = f"{found['perplexity']:.3f} over {found['tokens']} tokens: exp(mean -ln p)."
            picture = curve("perplexity by position", points, x_name="position, up to", y_name="perplexity")
            sections.append(Section("Perplexity by position", (note,), (), picture))
        elif task == "acceptance":
            head = ("temperature", "prompt tokens from", "replies", "acceptance rate", "mean acceptance length")
            keys = ("temperature", "context", "replies", "acceptance_rate", "mean_acceptance_length")
            table = (head, *(tuple(f"{row[key]:.3g}" for key in keys) for row in found))
            note = "Acceptance rate: accepted / draft tokens. Mean acceptance length: bonus token included."
            sections.append(Section("Acceptance by temperature and context", (note,), table))
        elif task in ("variables", "words"):
            sections.append(_names(task, found))
        elif task == "format":
            sections.append(_adherence(found))
        elif task == "lm_eval":
            sections.append(_harness(found))
        else:
            sections.append(_grid(task, found))
    return sections


def _harness(found: dict[str, Any]) -> Section:
    rows = [
        (name, metric, f"{value:.4f}", f"{one['standard_errors'].get(metric, float('nan')):.4f}", str(one["questions"]))
        for name, one in found.items()
        for metric, value in one["metrics"].items()
    ]
    head = ("task", "metric", "value", "standard error", "questions")
    note = "Metrics and standard errors are those of the tasks of lm-eval."
    return Section("Tasks of lm-eval", (note,), (head, *rows))


def _names(task: str, found: dict[str, Any]) -> Section:
    rows = [
        Bar(f"{r['length']} tokens", r["accuracy"], f"{r['found']}/{r['asked']}, whole {r['perfect']}/{r['trials']}")
        for r in found["by_length"]
    ]
    what = "Variables that hold a value, through four hops" if task == "variables" else "A list's five commonest words"
    note = f"{what}: {found['accuracy']:.0%} named. Whole: replies that named all of them. After RULER."
    return Section(f"Several facts: {task}", (note,), (), bars(task, rows, mark=1.0))


def _adherence(found: dict[str, Any]) -> Section:
    low, high = found["adherence_ci95"]
    keys = ("turn", "replies", "kept", "began_another", "ran_on", "empty")
    head = ("turn", "replies", "kept", "began another block", "ran on", "empty")
    note = (
        f"{found['adherence']:.0%} [{low:.0%}, {high:.0%}] of {found['replies']} replies kept to the Alpaca format: "
        "they say something, begin no other block and end with the end-of-text token. "
        f"Temperature of the replies: {found.get('temperature', 0):g}."
    )
    return Section("Format, turn by turn", (note,), (head, *(tuple(str(r[k]) for k in keys) for r in found["by_turn"])))


def _grid(task: str, found: dict[str, Any]) -> Section:
    lengths = list(dict.fromkeys(cell["length"] for cell in found["cells"]))
    depths = list(dict.fromkeys(cell["depth"] for cell in found["cells"]))
    known = {(cell["length"], cell["depth"]): (cell["hits"], cell["trials"]) for cell in found["cells"]}
    cells = [[known[length, depth] for length in lengths] for depth in depths]
    low, high = found["accuracy_ci95"]
    note = (
        f"Found {found['accuracy']:.0%} [{low:.0%}, {high:.0%}]. Columns: tokens of the prompt; rows: where the fact "
        "stands, 0% is the beginning. Numbers: found / asked."
    )
    picture = heat_map(task, [str(length) for length in lengths], [f"{depth:.0%}" for depth in depths], cells)
    table = (
        ("depth", *(str(length) for length in lengths)),
        *((f"{d:.0%}", *(f"{h}/{t}" for h, t in row)) for d, row in zip(depths, cells, strict=True)),
    )
    return Section(f"Finding a fact: {task}", (note,), table, picture)


def _certify(value: dict[str, Any]) -> list[Section]:
    page = certificate_page(value)
    return [Section("Losslessness", (page.lead,)), *page.sections[:-1]]


def _origin(origins: Sequence[tuple[str, str, dict[str, Any]]]) -> Section:
    rows = [("file", "command", "date", "draftsmith", "commit", "machine", "SHA-256 of the weights")]
    for name, kind, origin in origins:
        hashes = ", ".join(
            f"{role} {file} {digest[:12]}"
            for role, files in origin["weights_sha256"].items()
            for file, digest in files.items()
        )
        machine = f"{origin['cpu']}, {origin['cpus']} processors"
        commit = str(origin["git_commit"] or "")[:12]
        rows.append((name, kind, origin["date"], origin["draftsmith"], commit, machine, hashes))
    return Section("Where this comes from", (), tuple(rows))


_SECTIONS = {"bench": _bench, "certify": _certify, "plan": _plan, "eval": _eval}
