"""``draftsmith eval``: how good a model is at reading, remembering, and being drafted for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from draftsmith.cli.eval_harness import HarnessOptions
from draftsmith.cli.measuring import MeasureOptions, ResultOptions, Ticker, origin_of
from draftsmith.cli.options import ModelOptions
from draftsmith.cli.progress import ProgressBars
from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.engine import LLM
    from draftsmith.measure.needles import NeedleTask
    from draftsmith.measure.prompts import PromptItem
    from draftsmith.measure.ruler import RulerTask

__all__ = ["eval_"]

TASKS = ("perplexity", "passkey", "needle", "variables", "words", "format", "acceptance")
SPREAD = ("perplexity", "acceptance")
ASKS_PROMPTS = {"format", "acceptance"}


def eval_(
    tasks: Annotated[list[str] | None, typer.Argument(metavar=f"[{'|'.join(TASKS)}]...", show_default=False)] = None,
    *,
    text: Annotated[str | None, typer.Option(metavar="FILE", help="perplexity: the text to read, UTF-8.")] = None,
    context: Annotated[int, typer.Option(metavar="N", help="perplexity: tokens of a window.")] = 1024,
    windows: Annotated[int, typer.Option(metavar="N", help="perplexity: at most N windows.")] = 16,
    lengths: Annotated[
        str, typer.Option(metavar="N,N", help="passkey, needle, variables, words: tokens of the prompts.")
    ] = "512,1024,2048",
    depths: Annotated[
        str, typer.Option(metavar="P,P", help="passkey, needle: where the fact stands, 0 to 1.")
    ] = "0,0.25,0.5,0.75,1",
    trials: Annotated[
        int, typer.Option(metavar="N", help="passkey, needle, variables, words: questions in each cell.")
    ] = 2,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="format: the instruction at the top of each conversation.")
    ] = None,
    temperatures: Annotated[
        str, typer.Option(metavar="T,T", help="acceptance: temperatures to answer the prompts at.")
    ] = "0,0.7,1",
    format_temperature: Annotated[float, typer.Option(metavar="T", help="format: of the replies; 0: greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of texts and of sampled replies.")] = 0,
    ray_workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="perplexity, acceptance: share the work among N workers of Ray."),
    ] = None,
    harness: HarnessOptions,
    measure: MeasureOptions,
    result: ResultOptions,
    model: ModelOptions,
) -> None:
    """Evaluate a model.

    perplexity: by position, over the windows of a text. passkey and needle: grids of length and depth, a fact in a
    text of ours. variables and words: several facts of one text (after RULER). format: whether replies keep to the
    Alpaca format, turn by turn. acceptance: of the drafter, by temperature and by length of the prompt. Without a task:
    passkey and needle, perplexity too if there is a text. --task NAME: any task of lm-eval, where that is installed.
    """
    result.check()
    harness.check()
    chosen = _chosen(tasks, text) if tasks or not harness.task else []
    if ray_workers is not None:
        _check_ray(ray_workers, chosen)
    asked = _Asked(
        text=_read(text) if text is not None else "",
        context=context,
        windows=windows,
        lengths=_integers("--lengths", lengths),
        depths=_floats("--depths", depths),
        trials=trials,
        system=system,
        temperatures=_floats("--temperatures", temperatures),
        format_temperature=format_temperature,
        seed=seed,
        items=measure.items() if ASKS_PROMPTS.intersection(chosen) else (),
        max_new_tokens=measure.max_new_tokens,
        limit=measure.limit,
    )
    spread = None if ray_workers is None else _Spread(model.for_llm(), ray_workers)
    llm = None if spread is not None and chosen == ["acceptance"] and not harness.task else _load(model, result)
    from draftsmith.measure.eval_output import eval_text

    found = _all_measured(chosen, llm, asked, harness, Ticker(result.quiet), spread)
    options = {"seed": seed, "text": text, "max_new_tokens": measure.max_new_tokens}
    value = {"tasks": found, "provenance": origin_of(model, measure.path, options)}
    result.give(value, eval_text(value))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the options ask of the tasks."""

    text: str
    context: int
    windows: int
    lengths: list[int]
    depths: list[float]
    trials: int
    system: str | None
    temperatures: list[float]
    format_temperature: float
    seed: int
    items: tuple[PromptItem, ...]
    max_new_tokens: int
    limit: int | None

    def __post_init__(self) -> None:
        if not self.format_temperature >= 0:
            raise UsageError(f"--format-temperature is {self.format_temperature}; give 0, which is greedy, or more")


@dataclass(frozen=True, slots=True)
class _Spread:
    """How the workers of Ray load their models, and how many they are."""

    options: dict[str, Any]
    workers: int


def _load(model: ModelOptions, result: ResultOptions) -> LLM:
    with ProgressBars(quiet=result.quiet) as progress:
        from draftsmith.engine import LLM

        return LLM(progress=progress, **model.for_llm())


def _all_measured(
    chosen: list[str],
    llm: LLM | None,
    asked: _Asked,
    harness: HarnessOptions,
    ticker: Ticker,
    spread: _Spread | None,
) -> dict[str, Any]:
    try:
        found = {task: _measured(task, llm, asked, ticker, spread) for task in chosen}
        if harness.task and llm is not None:
            found["lm_eval"] = _by_harness(llm, harness, asked.limit, ticker)
    finally:
        ticker.close()
    return found


def _by_harness(llm: LLM, harness: HarnessOptions, limit: int | None, ticker: Ticker) -> dict[str, Any]:
    from draftsmith.measure.lm_eval_model import run_tasks

    return run_tasks(
        llm,
        harness.task,
        folder=harness.folder,
        limit=limit,
        num_fewshot=harness.fewshot,
        chat=harness.task_chat,
        report=ticker,
    )


def _check_ray(workers: int, chosen: list[str]) -> None:
    from draftsmith.engine.ray_workers import check_ray

    check_ray(workers)
    others = [task for task in chosen if task not in SPREAD]
    if others:
        raise UsageError(f"--ray-workers is for {' and '.join(SPREAD)}; leave out {others[0]} or --ray-workers")


def _measured(task: str, llm: LLM | None, asked: _Asked, ticker: Ticker, spread: _Spread | None) -> Any:
    """One task's result, as it stands in the JSON object. ``llm`` is None where only ``spread`` is needed."""
    from draftsmith.measure import eval_output
    from draftsmith.types import SamplingParams

    if task == "acceptance" and spread is not None:
        from draftsmith.measure.on_ray import acceptance_on_ray

        params = SamplingParams(max_new_tokens=asked.max_new_tokens, seed=asked.seed)
        rows = acceptance_on_ray(spread.options, asked.items, asked.temperatures, params, spread.workers, ticker)
        return eval_output.acceptance_json(rows)
    assert llm is not None  # noqa: S101 - all other tasks need it
    if task == "perplexity":
        return _perplexity(llm, asked, ticker, spread)
    if task == "acceptance":
        from draftsmith.measure.acceptance import measure_acceptance

        params = SamplingParams(max_new_tokens=asked.max_new_tokens, seed=asked.seed)
        return eval_output.acceptance_json(measure_acceptance(llm, asked.items, asked.temperatures, params, ticker))
    if task == "format":
        from draftsmith.measure.adherence import measure_adherence

        temperature = asked.format_temperature
        params = SamplingParams(temperature=temperature, seed=asked.seed, max_new_tokens=asked.max_new_tokens)
        found = measure_adherence(llm, asked.items, params, system=asked.system, report=ticker)
        return eval_output.adherence_json(found, temperature)
    cells = {"trials": asked.trials, "seed": asked.seed}
    if task in ("variables", "words"):
        from draftsmith.measure.ruler import measure_ruler

        ruler = cast("RulerTask", task)
        return eval_output.ruler_json(measure_ruler(llm, ruler, asked.lengths, report=ticker, **cells))
    from draftsmith.measure.needles import measure_needles

    needle = cast("NeedleTask", task)
    return eval_output.grid_json(measure_needles(llm, needle, asked.lengths, asked.depths, report=ticker, **cells))


def _chosen(tasks: list[str] | None, text: str | None) -> list[str]:
    chosen = list(dict.fromkeys(tasks or (["perplexity"] if text is not None else []) + ["passkey", "needle"]))
    for task in chosen:
        if task not in TASKS:
            raise UsageError(f"there is no task {task!r}; choose from {', '.join(TASKS)}")
    if "perplexity" in chosen and text is None:
        raise UsageError("perplexity needs a text to read; give one with --text FILE")
    return chosen


def _perplexity(llm: LLM, asked: _Asked, ticker: Ticker, spread: _Spread | None) -> dict[str, Any]:
    from draftsmith.measure.eval_output import perplexity_json
    from draftsmith.measure.perplexity import cut_windows, measure_perplexity

    tokenizer = llm.tokenizer
    ids = tokenizer.encode(asked.text, add_bos=False)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    model = llm.target.model
    size = min(asked.context, model.max_context)
    if spread is None:
        found = measure_perplexity(model, ids, context=size, bos_id=bos, limit=asked.windows, report=ticker)
        return perplexity_json(found)
    from draftsmith.measure.on_ray import perplexity_on_ray

    windows = cut_windows(model.max_context, ids, context=size, bos_id=bos, limit=asked.windows)
    return perplexity_json(perplexity_on_ray(spread.options, windows, size, spread.workers, ticker))


def _read(text: str) -> str:
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{text} is not UTF-8 text (byte {error.start}); convert it first") from None
    except OSError as error:
        raise UsageError(f"{text} cannot be read ({error.strerror}); give a text file") from None


def _floats(option: str, values: str) -> list[float]:
    try:
        return [float(value) for value in values.split(",")]
    except ValueError:
        raise UsageError(f"{option} is {values!r}; write numbers with commas between them") from None


def _integers(option: str, values: str) -> list[int]:
    try:
        return [int(value) for value in values.split(",")]
    except ValueError:
        raise UsageError(f"{option} is {values!r}; write whole numbers with commas between them") from None
