"""Evidence: what speculation gains, and that it changes nothing. Knows models by the engine and by their protocol."""

from draftsmith.measure.bench import BenchResult, run_bench
from draftsmith.measure.pair import Pair, load_pair
from draftsmith.measure.prompts import PromptItem, built_in_prompts, read_prompts, select_prompts

__all__ = [
    "BenchResult",
    "Pair",
    "PromptItem",
    "built_in_prompts",
    "load_pair",
    "read_prompts",
    "run_bench",
    "select_prompts",
]
