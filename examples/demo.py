"""The same prompts, plain and speculative, with a real model: the text is identical, only the speed differs.

Run by ``make demo``. The drafter is prompt lookup: it proposes what followed the last time the text looked like this.
So it helps where a reply repeats the prompt (the first three prompts) and has little to offer where all is new (the
others). Every number is measured in this run, on this machine; nothing is left out of the table. Once the text has been
shown, each way writes it three more times, in turns, and the fastest counts: what else the machine does can only make a
run slower.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from draftsmith import LLM, Completion, Message, SamplingParams

MISSPELT = """The quik brown fox jumps over the lazy dog. It was a sunny day and the birds were singing in the treees.
The fox was very hapy becuase it had found a new home in the forest near the river. Every morning it went down to the
water to drink, and every evening it came back to sleep under the old oak tree."""

LETTER = """Dear Ms Baker, thank you for your letter of 3 March. We are sorry that the lamp arrived broken. A new lamp
will be sent to you on Monday, and you may keep the old one. Please let us know if it does not arrive within five days.
Kind regards, the Lamp Shop."""

ARTICLE = """The Amazon rainforest is the largest tropical rainforest in the world, covering more than five million
square kilometres across nine countries. It is home to about ten percent of all known species. Deforestation, mostly for
cattle and soy, has destroyed about a fifth of the forest since 1970. Scientists warn that beyond a tipping point the
forest could turn into savanna."""

GREEDY = SamplingParams(greedy=True, max_new_tokens=128)
SAMPLED = SamplingParams(seed=1, max_new_tokens=128)  # temperature 0.7, top-k 50, top-p 0.95
PROMPTS = (
    ("correct", f"Correct the spelling mistakes:\n\n{MISSPELT}", GREEDY),
    ("extract", f"Extract all sentences that mention the lamp:\n\n{LETTER}", GREEDY),
    ("summarise", f"Summarise in two sentences:\n\n{ARTICLE}", GREEDY),
    ("explain", "Explain why the sky is blue.", GREEDY),
    ("story", "Write a short story about a lighthouse keeper.", SAMPLED),
)

TURNS = 3  # of each way
COLUMNS = ("tokens", "plain tok/s", "spec. tok/s", "speed-up", "drafted", "accepted", "tokens/draft")
TINTED = "\x1b[36m{}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else "{}"


@dataclass(frozen=True)
class Pair:
    """One prompt, run both ways."""

    name: str
    plain: Completion
    speculative: Completion
    identical: bool


def main() -> int:
    """Run everything; the exit code is 1 if any text differs."""
    plain = LLM(draft="none", progress=show_progress)
    speculative = LLM(plain.target, draft="lookup")  # the same weights, loaded once
    for llm in (plain, speculative):
        llm.generate("Warm up.", SamplingParams(greedy=True, max_new_tokens=16))
    print(f"target {plain.name}, drafter {speculative.drafter_name}; what the drafter got right is {tint('tinted')}")
    pairs = [run(name, prompt, sampling, plain, speculative) for name, prompt, sampling in PROMPTS]
    print_table(pairs)
    identical = all(pair.identical for pair in pairs)
    print(f"\nidentical: {'yes' if identical else 'NO'}")
    return 0 if identical else 1


def run(name: str, prompt: str, sampling: SamplingParams, plain: LLM, speculative: LLM) -> Pair:
    """Both ways for one prompt, in turns; before that, the speculative text is shown as it is written."""
    print(f"\n--- {name}: {prompt.splitlines()[0]}\n", flush=True)
    messages = [Message("user", prompt)]
    stream = speculative.stream_chat(messages, sampling)
    for piece in stream:
        print(tint(piece.text) if piece.from_draft else piece.text, end="", flush=True)
    plain_runs, speculative_runs = [], []
    for _ in range(TURNS):
        plain_runs.append(plain.chat(messages, sampling))
        speculative_runs.append(speculative.chat(messages, sampling))
    written = {(one.token_ids, one.text) for one in [stream.completion, *plain_runs, *speculative_runs]}
    pair = Pair(name, fastest(plain_runs), fastest(speculative_runs), identical=len(written) == 1)
    before, after = pair.plain.timing.tokens_per_s, pair.speculative.timing.tokens_per_s
    print(f"\n\nplain {before:.0f} tokens/s, speculative {after:.0f} tokens/s ({after / before:.2f}x), ", end="")
    print(f"identical: {'yes' if pair.identical else 'NO'}")
    return pair


def fastest(runs: Sequence[Completion]) -> Completion:
    """The run that was disturbed least."""
    return max(runs, key=lambda completion: completion.timing.tokens_per_s)


def print_table(pairs: Sequence[Pair]) -> None:
    """One line a prompt, and all together: tokens over seconds, not an average of ratios."""
    print()
    print(f"{'prompt':<12}" + "".join(f"{name:>13}" for name in COLUMNS))
    for pair in pairs:
        print_row(pair.name, [pair])
    print_row("all", pairs)


def print_row(name: str, pairs: Sequence[Pair]) -> None:
    """The sums over some prompts. tokens/draft is the mean acceptance length: 1 + accepted / drafts, bonus included."""
    tokens = sum(pair.plain.timing.num_decoded for pair in pairs)
    plain = tokens / sum(pair.plain.timing.decode_s for pair in pairs)
    speculative = tokens / sum(pair.speculative.timing.decode_s for pair in pairs)
    stats = [pair.speculative.speculation for pair in pairs if pair.speculative.speculation is not None]
    drafts = sum(counts.num_drafts for counts in stats)
    drafted = sum(counts.num_draft_tokens for counts in stats)
    accepted = sum(counts.num_accepted_tokens for counts in stats)
    cells = (
        f"{sum(len(pair.plain.token_ids) for pair in pairs)}",
        f"{plain:.1f}",
        f"{speculative:.1f}",
        f"{speculative / plain:.2f}x",
        f"{drafted}",
        f"{accepted / drafted:.0%}" if drafted else "-",
        f"{1 + accepted / drafts:.2f}" if drafts else "-",
    )
    print(f"{name:<12}" + "".join(f"{cell:>13}" for cell in cells))


def tint(text: str) -> str:
    """Text that the drafter proposed and the target accepted."""
    return TINTED.format(text)


def show_progress(what: str, done: int, total: int) -> None:
    """Tell how far a download is, on one line that is written over."""
    if total and sys.stderr.isatty():
        print(f"\r{what}: {done / total:4.0%}", end="\n" if done >= total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
