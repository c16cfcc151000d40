"""Many chats at once: ``draftsmith serve`` beside llama-server, each with and without drafting, in one run.

    python -m benchmarks.load --target TARGET.gguf [--draft DRAFT.gguf] [--ours-draft REF] [--llama-server PATH]

Waves: so many clients at once, each of which asks one prompt after the other, streaming and greedily, until the wave's
prompts are used up. Replies are of different lengths: as chats of one length go on ending together, their prompts would
be read together, as no users' are. The servers take turns wave by wave on the same prompts, the first one changing;
between waves all of them are idle. Ours is one server that is asked to draft or not to: of two that are alike, one
takes up to 4 % more processor time than the other for as long as both run. It shares no prompts, or a wave would find
those of the one before read. Tokens per second: reply tokens / wall time, prompts included, from the first question to
the moment when a client finds no prompt left, for after it there are fewer chats at once; of a reply that is then under
way, the share of its time that has gone by. Ratios are medians over the waves of one size, each of ours against the
better of llama-server's two on the same prompts. Beside the median of drafting against plain stands what all waves
together took, with a 95 % bootstrap interval over the waves, and the same by the processor time of the server (of both
threads, where the system tells): it leaves out what others on the host took away from either. A virtual machine is told
how much of its processors others had: turns in which that was more than ``--stolen`` for one of the waves are not
counted, as far as there are others.
``--llama-server``: the program, built for this machine (-DGGML_NATIVE=ON); without it there is nothing of theirs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import PeerMissingError, add_record_option, report, run_script, table
from draftsmith.measure.endpoint import Endpoint, Streamed, find_endpoint
from draftsmith.measure.prompts import PromptItem, built_in_prompts, read_prompts
from draftsmith.measure.statistics import ratio_interval
from draftsmith.types import Message, SamplingParams

READY_S = 180.0
PLAIN, DRAFTED, PEER_PLAIN, PEER_DRAFTED = "ours, plain", "ours, drafting", "llama-server", "llama-server, drafting"


@dataclass(frozen=True, slots=True)
class Wave:
    """What a wave of chats took. ``tokens`` in ``seconds``: while all clients were busy. ``firsts``: seconds to each
    reply's first text. ``every``: tokens to the wave's end. ``processor_s``: of the server, to its end.

    ``stolen``: share of the processors' time that other virtual machines had meanwhile.
    """

    tokens: float
    seconds: float
    firsts: tuple[float, ...]
    texts: tuple[str, ...]
    every: int
    processor_s: float | None = None
    stolen: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second, of all chats together."""
        return self.tokens / self.seconds

    @property
    def slow_first(self) -> float:
        """95th percentile of the time to the first text."""
        return sorted(self.firsts)[max(0, -(-95 * len(self.firsts) // 100) - 1)]


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=Path, required=True, help="a .gguf file, for all servers")
    parser.add_argument("--draft", type=Path, help="a .gguf file that llama-server drafts with; without it, lookup")
    parser.add_argument("--ours-draft", default="auto", help="what our server drafts with: REF, lookup or auto")
    parser.add_argument("--llama-server", help="the program; by default the one on the path, if there is one")
    parser.add_argument("--llama-target", type=Path, help="another quantisation of the target, for it alone")
    parser.add_argument("--llama-args", default="", help="more arguments for it, in one string")
    parser.add_argument("--sizes", default="1,4,8,16", help="chats at once, comma-separated")
    parser.add_argument("--waves", type=int, default=3, help="waves of each size for each server")
    parser.add_argument("--chats", type=int, default=2, help="chats of each client in a wave")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of a reply at most, on average over all")
    parser.add_argument("--prompts", type=Path, help="a file of prompts; by default the built-in ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stolen", type=float, default=0.02, help="share of the processors that others may have")
    add_record_option(parser)
    return parser.parse_args()


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def processor_s(pid: int) -> float | None:
    """Seconds that all threads of a process have computed so far; None where there is no ``/proc`` to tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_ticks() -> tuple[int, int]:
    """Time of all processors so far, stolen and altogether, in ticks; zeros where there is no ``/proc`` to tell."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return 0, 0
    return ticks[7], sum(ticks[:8])  # what comes after is contained in what comes before


@contextlib.contextmanager
def served(command: Sequence[str], port: int) -> Iterator[tuple[str, int]]:
    """The address and process of a server while it runs. Raises RuntimeError when it does not come up."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5) as answer:  # noqa: S310
                if answer.status == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not come up; try it by hand: {' '.join(command)}")
            time.sleep(0.2)
        yield address, process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def our_command(options: argparse.Namespace, port: int) -> list[str]:
    """How our server is started."""
    serve = [sys.executable, "-m", "draftsmith", "serve", "--target", str(options.target), "--port", str(port)]
    serve += ["--draft", options.ours_draft, "--threads", str(options.threads), "--no-share-prompts"]
    return [*serve, "--quiet", "--no-access-log"]


def peer_command(program: str, options: argparse.Namespace, port: int, *, drafting: bool) -> list[str]:
    """How llama-server is started: as many slots as there are chats, each with room for a chat."""
    slots = max(int(size) for size in options.sizes.split(","))
    model = options.llama_target or options.target
    command = [program, "-m", str(model), "--port", str(port), "-t", str(options.threads), "-np", str(slots)]
    command += ["-c", str(slots * 2048), "-tb", str(options.threads), *options.llama_args.split()]
    if not drafting:
        return command
    if options.draft is None:
        return [*command, "--spec-type", "ngram-simple"]
    return [*command, "-md", str(options.draft), "--spec-draft-n-max", "8"]


def ask_all(endpoint: Endpoint, prompts: Sequence[str], clients: int, max_new_tokens: int) -> Wave:
    """One wave."""

    def ask(prompt: str, limit: int) -> tuple[float, Streamed]:
        asked = time.perf_counter()
        return asked, endpoint.ask([Message("user", prompt)], SamplingParams(greedy=True, max_new_tokens=limit))

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, prompts, limits_of(len(prompts), max_new_tokens)))
    return as_wave(answers, clients)


def limits_of(replies: int, average: int) -> list[int]:
    """How many tokens each reply may have: from half to one and a half times ``average``, evenly and out of order."""
    golden = (5**0.5 - 1) / 2
    return [max(1, round(average * (0.5 + (i + 0.5) * golden % 1))) for i in range(replies)]


def as_wave(answers: Sequence[tuple[float, Streamed]], clients: int) -> Wave:
    """From the replies, in the order of asking, and when each was asked for.

    The last ``clients`` replies to end are those after which a client has nothing to ask: the first of them to end.
    """
    replies = [reply for _, reply in answers]
    ends = [asked + reply.first_s + reply.rest_s for asked, reply in answers]
    began, over = min(asked for asked, _ in answers), sorted(ends)[-min(clients, len(ends))]
    left = [max(0.0, end - over) for end in ends]
    shares = [max(0.0, 1 - late / max(one.rest_s, 1e-9)) for late, one in zip(left, replies, strict=True)]
    tokens = sum(one.num_tokens * share for one, share in zip(replies, shares, strict=True))
    texts, firsts = tuple(one.text for one in replies), tuple(one.first_s for one in replies)
    return Wave(tokens, over - began, firsts, texts, sum(one.num_tokens for one in replies))


def in_turn(items: Sequence[PromptItem]) -> list[str]:
    """The first turns of all prompts, the categories taking turns, so that no wave is of one kind."""
    seen: Counter[str] = Counter()
    places = [seen.update([item.category]) or seen[item.category] for item in items]
    return [items[i].turns[0] for i in sorted(range(len(items)), key=lambda i: places[i])]


def measure(
    options: argparse.Namespace, ways: dict[str, Endpoint], processes: Mapping[str, int]
) -> dict[int, dict[str, list[Wave]]]:
    """All waves, by size and server."""
    items = read_prompts(options.prompts) if options.prompts else built_in_prompts()
    asked, place = in_turn(items), 0
    for endpoint in ways.values():  # wakes weights up, and lets drafts be calibrated
        ask_all(endpoint, [f"Warming up. {text}" for text in asked[:4]], 2, options.max_new_tokens)
    found: dict[int, dict[str, list[Wave]]] = {}
    for size in map(int, options.sizes.split(",")):
        rows = found.setdefault(size, {name: [] for name in ways})
        for turn in range(options.waves):
            # No prompt begins like one that was asked before, or the caches of earlier chats would be what is measured.
            wave = [
                f"({size}.{turn}.{i}) {asked[(place + i) % len(asked)]}" for i in range(max(4, options.chats * size))
            ]
            place += len(wave)
            order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
            for name in order:
                (stolen, ticks), before = machine_ticks(), processor_s(processes[name])
                one = ask_all(ways[name], wave, size, options.max_new_tokens)
                after, (stolen_after, ticks_after) = processor_s(processes[name]), machine_ticks()
                spent = None if before is None or after is None else after - before
                share = (stolen_after - stolen) / max(1, ticks_after - ticks)
                rows[name].append(replace(one, processor_s=spent, stolen=share))
                print(f"{size} at once, {name}: {one.rate:.1f} tokens/s, {share:.1%} stolen", file=sys.stderr)
    return found


def quiet_turns(waves: Mapping[str, Sequence[Wave]], stolen: float) -> list[int]:
    """The turns in which no wave lost more than that share of the processors; at least the quieter half of all."""
    lost = [max(list_[t].stolen for list_ in waves.values()) for t in range(len(waves[PLAIN]))]
    allowed = max(stolen, sorted(lost)[(len(lost) - 1) // 2])
    return [t for t, share in enumerate(lost) if share <= allowed]


def compare(found: dict[int, dict[str, list[Wave]]], stolen: float = 1.0) -> tuple[list[dict[str, Any]], bool]:
    """A row of figures for each size, and whether our texts are the same with drafting and without.

    Figures are of turns in which others had no more than the share ``stolen`` of the processors, texts of all.
    """
    rows, same = [], True
    for size, every in found.items():
        same = same and all(a.texts == b.texts for a, b in zip(every[PLAIN], every[DRAFTED], strict=True))
        quiet = quiet_turns(every, stolen)
        waves = {name: [list_[t] for t in quiet] for name, list_ in every.items()}
        turns = range(len(quiet))
        row: dict[str, Any] = {"size": size, "waves": len(every[PLAIN]), "waves_counted": len(quiet)}
        row["tokens_per_s"] = {name: median(one.rate for one in list_) for name, list_ in waves.items()}
        # All chats of a size together: a wave of one client has too few for a percentile.
        row["first_p95_s"] = {
            name: replace(list_[0], firsts=tuple(first for one in list_ for first in one.firsts)).slow_first
            for name, list_ in waves.items()
        }
        row["drafting_over_plain"] = median(waves[DRAFTED][t].rate / waves[PLAIN][t].rate for t in turns)
        plain_s, drafted_s = ([1 / one.rate for one in waves[name]] for name in (PLAIN, DRAFTED))  # for each token
        row["drafting_over_plain_all"] = sum(plain_s) / sum(drafted_s)
        row["drafting_over_plain_interval"] = ratio_interval(plain_s, drafted_s)
        spent = [[one.processor_s / one.every for one in waves[n] if one.processor_s] for n in (PLAIN, DRAFTED)]
        if all(len(one) == len(turns) for one in spent):
            row["by_processor_time"] = sum(spent[0]) / sum(spent[1])
            row["by_processor_time_interval"] = ratio_interval(spent[0], spent[1])
        peers = [waves[name] for name in (PEER_PLAIN, PEER_DRAFTED) if name in waves]
        if peers:
            best = [max(one[t].rate for one in peers) for t in turns]
            row["over_llama_server"] = median(waves[DRAFTED][t].rate / best[t] for t in turns)
        rows.append(row)
    return rows, same


def tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For people: speeds and ratios, then times to the first text."""
    names, peers = list(rows[0]["tokens_per_s"]), "over_llama_server" in rows[0]
    speeds = [
        [
            row["size"], f"{row['waves_counted']} of {row['waves']}",
            *(row["tokens_per_s"][name] for name in names), row["drafting_over_plain"],
            _between(row["drafting_over_plain_all"], row["drafting_over_plain_interval"]),
            _between(row.get("by_processor_time"), row.get("by_processor_time_interval")),
            *([row["over_llama_server"]] if peers else []),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["chats at once", "turns counted", *(f"{name}, tokens/s" for name in names)]
    head += ["drafting / plain", "all waves", "by processor time"]
    firsts = [[row["size"], *(1e3 * row["first_p95_s"][name] for name in names)] for row in rows]
    return [
        table([*head, *(["drafting / llama-server's best"] if peers else [])], speeds),
        table(["chats at once", *(f"{name}, first text p95, ms" for name in names)], firsts),
    ]


def _between(value: float | None, interval: Sequence[float] | None) -> str:
    return "" if value is None or interval is None else "{:.2f} ({:.2f} to {:.2f})".format(value, *interval)


def main() -> int:
    """Start the servers, run the waves, print the tables and the JSON line; exit code 1 when our texts differ."""
    options = parse()
    program = options.llama_server or shutil.which("llama-server")
    if options.llama_server and not Path(options.llama_server).is_file():
        raise PeerMissingError(f"--llama-server is {options.llama_server}, which is no file; give the program's path")
    commands = {DRAFTED: partial(our_command, options)}
    if program:
        peers = (PEER_PLAIN, PEER_DRAFTED)
        commands |= {name: partial(peer_command, program, options, drafting=name == PEER_DRAFTED) for name in peers}
    with contextlib.ExitStack() as stack:
        ways, processes = {}, {}
        for name, command in commands.items():
            port = free_port()
            address, processes[name] = stack.enter_context(served(command(port=port), port))
            found = find_endpoint(address)
            cached = {"cache_prompt": True} if found.kind == "llama.cpp" else {}
            ways[name] = replace(found, fields={**found.fields, **cached})
        ways = {PLAIN: ways[DRAFTED].without_drafting(), **ways}
        processes[PLAIN] = processes[DRAFTED]
        rows, same = compare(measure(options, ways, processes), options.stolen)
    result = {
        "target": options.target.name, "draft": options.draft and options.draft.name,
        "ours_draft": Path(options.ours_draft).name,
        "threads": options.threads, "llama_args": options.llama_args, "max_new_tokens": options.max_new_tokens,
        "llama_target": options.llama_target and options.llama_target.name,
        "identical": same, "sizes": rows,
    }  # fmt: skip
    files = [path for path in (options.target, options.draft, options.llama_target) if path]
    report(f"Many chats at once: {options.target.stem}", tables(rows), result, options.record, files=files)
    return int(not same)


if __name__ == "__main__":
    run_script(main)
