"""How often the proving ground catches each fault that only a run can show, and how often it blames a correct policy.

    python -m tests.bench.oracle_power [--runs 20] [--busy] [--alarms] [NAME ...]      (make bench-oracles)

Each policy of the corpus with an oracle is taken through the phase of that oracle, again and again, each time in a
fresh machine: on the host as it is, and with --busy beside a loop on every CPU. A fault that is caught less than 19
times out of 20 has a phase that waits for it where it should provoke it. With --alarms correct and bundled policies go
through the phases whose figures come near their bounds. By hand only: twenty runs of one policy take two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from schedagent.core.errors import HostBusy
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.process import proc
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from tests.corpus import Entry, load_corpus
from verifier.lab.vm import LabPolicy, VmLab
from verifier.proving.prove import ORACLES, PHASES, Depth

ENOUGH = 0.95
NEAR_THEIR_BOUNDS = ("provoked stall", "pinned crowd", "groups", "moved clock")


@dataclass(frozen=True)
class Power:
    """What came of all runs of one policy.

    Args:
        name, oracle: which policy, and which oracle had to say what.
        failed: in how many runs the oracle, or the kernel, ended it.
        undecided: in how many there was no verdict.
        runs: how many there were.
        figures: what the oracle measured.
    """

    name: str
    oracle: str
    failed: int
    undecided: int
    runs: int
    figures: tuple[float, ...]

    def row(self, wanted: bool) -> tuple[str, ...]:
        """One line of the table; `wanted` is whether it should fail."""
        right = self.failed if wanted else self.runs - self.failed
        low, middle, high = (f"{f(self.figures):.2f}" if self.figures else "-" for f in (min, statistics.median, max))
        good = right >= ENOUGH * (self.runs - self.undecided)
        bound = f"{ORACLES[self.oracle].bound:g} {ORACLES[self.oracle].unit}"
        return (
            self.name, self.oracle, f"{self.failed} of {self.runs}", str(self.undecided), low, middle, high, bound,
            "yes" if good else "NO",
        )  # fmt: skip


def phase_of(oracle: str) -> str:
    """The phase that gives results of an oracle."""
    return next(phase.name for phase in PHASES if any(info.name == oracle for info in phase.oracles))


def measure(lab: VmLab, entry: Entry, oracle: str, runs: int) -> Power:
    """Take one policy through the phase of an oracle so many times."""
    target = prepare_target(lab.kernel.vmlinuz, lab.kernel.release, load_settings().cache_dir)
    candidate = CandidatePolicy(entry.name, entry.info.configured({}))
    policy = LabPolicy(candidate, compile_policy(entry.info.source, entry.name, target))
    failed, undecided, figures = 0, 0, []
    for _ in range(runs):
        try:
            answer = lab.prove(policy, Depth.STANDARD, [phase_of(oracle)])
        except HostBusy:
            undecided += 1
            continue
        results = {result["name"]: result for result in answer.results}
        undecided += oracle in answer.undecided
        failed += bool(answer.exit_text) or any(not result["ok"] for result in results.values())
        figures += [results[oracle]["measured"]] if oracle in results else []
    return Power(entry.name, oracle, failed, undecided, runs, tuple(figures))


@contextmanager
def busy_host(cpus: int) -> Iterator[None]:
    """Keep every CPU of this host busy."""
    loops = [proc.start([sys.executable, "-c", "while True: pass"]) for _ in range(cpus)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def subjects(names: Sequence[str], alarms: bool) -> Iterator[tuple[Entry, str]]:
    """The policies to try, each with the oracle that has to see it, or has to leave it alone."""
    for entry in load_corpus():
        if names and entry.name not in names:
            continue
        if alarms and entry.kind != "broken":
            yield from ((entry, oracle) for oracle in NEAR_THEIR_BOUNDS)
        elif not alarms and entry.oracle:
            yield entry, entry.oracle


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.oracle_power", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="of each policy")
    parser.add_argument("--busy", action="store_true", help="beside a loop on every CPU")
    parser.add_argument("--alarms", action="store_true", help="correct policies, which must pass")
    parser.add_argument("names", nargs="*", help="only these policies")
    chosen = parser.parse_args(words)
    lab = open_lab(load_settings())
    table = Table("policy", "oracle", "failed", "undecided", "least", "median", "most", "bound", "19 of 20")
    bad = 0
    with busy_host(lab.cpus if chosen.busy else 0):
        for entry, oracle in subjects(chosen.names, chosen.alarms):
            row = measure(lab, entry, oracle, chosen.runs).row(wanted=not chosen.alarms)
            print(*row, sep=" | ", file=sys.stderr, flush=True)
            table.add_row(*row)
            bad += row[-1] == "NO"
    Console(width=160).print(table, markup=False)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
