"""A state folder in which runs have piled up for months, and a cache folder beside it, made by bulk inserts."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.orm import Session

from agents.llm.transcript import Transcript, transcript_path
from kernel_bpf.policies.library import load_library
from repo_store.database.engine import open_engine
from repo_store.database.tables import (
    AntipatternRow,
    CandidateRow,
    DerivedPolicyRow,
    InsightRow,
    PlanRow,
    ProfileRow,
    RunRow,
    SampleRow,
    VerdictRow,
    VerificationRow,
)
from repo_store.records import RunStatus
from repo_store.rows import to_row
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.rules import GATES
from schedagent.core.trials.lesson import Antipattern, Insight
from schedagent.core.trials.trial import DEFAULT_ARM, Outcome, Sample, Verdict
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.core.verification import GateResult, GateStatus, VerificationReport
from tests.support.finished_runs import HARDWARE, profile

DAY_S = 86400.0
WORKLOADS = tuple(WorkloadCommand(f"make part{number}", "/srv/project") for number in range(8))
PRINTED = "what the workload printed, line by line\n" * 20
GATES_PASSED = tuple(GateResult(gate, GateStatus.PASSED, "fine " * 50) for gate in GATES)


@dataclass(frozen=True)
class OldRun:
    """One run of the pile.

    Args:
        number: 0 is the oldest.
        at: Unix time of its beginning.
        status: how it ended.
        observed: whether it got as far as its profile.
        won: whether it found the first of its candidates better.
        derived: name of a policy that it made and that lost; empty for none.
    """

    number: int
    at: float
    status: RunStatus = RunStatus.FINISHED
    observed: bool = True
    won: bool = False
    derived: str = ""

    @property
    def id(self) -> str:
        return f"{datetime.fromtimestamp(self.at, UTC):%Y%m%d-%H%M%S}-{self.number:06x}"

    @property
    def workload(self) -> WorkloadCommand:
        return WORKLOADS[self.number % len(WORKLOADS)]

    @property
    def digest(self) -> str:
        """Of the object that it found better."""
        return f"{self.number:064x}"


def pile(count: int, *, days: float, now: float) -> list[OldRun]:
    """Runs that began evenly over so many days until now: most found nothing better, some won, some did not end."""
    runs = []
    for number in range(count):
        run = OldRun(number, now - days * DAY_S * (count - number) / count)
        if number % 50 == 7:
            run = replace(run, status=RunStatus.INTERRUPTED)
        elif number % 50 == 13:
            run = replace(run, status=RunStatus.FAILED, observed=False)
        elif number % 39 == 9:
            run = replace(run, won=True)
        elif number % 10 == 3:
            run = replace(run, derived=f"derived_{number}")
        runs.append(run)
    return runs


def store(path: Path, runs: list[OldRun]) -> None:
    """Store runs in a repository, in one transaction."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = open_engine(path)
    library = load_library()
    try:
        with Session(engine) as session, session.begin():
            for run in runs:
                for rows in _rows(run, library["fifo"].source_digest):
                    session.add_all(rows)
                    session.flush()
    finally:
        engine.dispose()


def _rows(run: OldRun, fifo_digest: str):
    """The rows of a run, parents before their children."""
    ended = "" if run.status is RunStatus.RUNNING else iso(run.at + 600)
    yield [
        RunRow(
            id=run.id, workload=run.workload, workload_key=run.workload.key, hardware=HARDWARE,
            hardware_key=HARDWARE.key, settings={}, seed=run.number, started_at=iso(run.at), finished_at=ended,
            status=run.status, report={"run": run.id} if run.status is RunStatus.FINISHED else None,
        )
    ]  # fmt: skip
    if not run.observed:
        return
    yield [ProfileRow(run_id=run.id, profile=profile())]
    yield [PlanRow(run_id=run.id, iteration=0, reason="because", learned="")]
    candidates = _candidates(run)
    place = {"run_id": run.id, "iteration": 0}
    yield [
        to_row(CandidateRow, candidate, **place, position=position, key=candidate.key, repairs="")
        for position, candidate in enumerate(candidates)
    ]
    if run.derived:
        made = DerivedPolicy(run.derived, Origin.PATCH, "fifo", "c " * 500, "m", None, run.id, iso(run.at))
        yield [to_row(DerivedPolicyRow, made)]
    yield [VerificationRow(run_id=run.id, candidate_key=c.key, report=_report(run, c)) for c in candidates]
    if run.status is not RunStatus.FINISHED:
        return
    arms = (DEFAULT_ARM, *(candidate.key for candidate in candidates))
    yield [
        to_row(SampleRow, _sample(arm), **place, block=block, position=position, argv=("sh", "-c", "make"))
        for block in range(4)
        for position, arm in enumerate(arms)
    ]
    yield [
        to_row(VerdictRow, _verdict(run, position), **place, candidate_key=candidate.key, at=iso(run.at + 500))
        for position, candidate in enumerate(candidates)
    ]
    yield [to_row(InsightRow, Insight("so it is", (candidates[0].key,), run.id, iso(run.at + 550)))]
    if run.number % 5 == 0:
        failed = Antipattern(
            "fifo" if run.number % 2 else f"gone_{run.number}", f"fifo:{run.number}", (), run.workload.key,
            HARDWARE.key, "trial", "it stalled", iso(run.at), fifo_digest,
        )  # fmt: skip
        yield [to_row(AntipatternRow, failed)]


def _candidates(run: OldRun) -> list[CandidatePolicy]:
    slices = 30000 + run.number if run.number % 30 == 1 else 5000 + 1000 * (run.number // len(WORKLOADS) % 3)
    third = (CandidatePolicy(run.derived),) if run.derived else ()
    return [
        CandidatePolicy("longest_first", LONGEST_FIRST, reason="the tail is long"),
        CandidatePolicy("fifo", (("slice_us", slices),), reason="simplest"),
        *third,
    ]


LONGEST_FIRST = tuple(
    sorted((tunable.name, tunable.default) for tunable in load_library()["longest_first"].tunables)
)  # as the planner configures it


def _report(run: OldRun, candidate: CandidatePolicy) -> VerificationReport:
    return VerificationReport(candidate.policy, candidate.key, run.digest, HARDWARE.kernel_release, GATES_PASSED)


def _sample(arm: str) -> Sample:
    return Sample(arm, 1.5, 10**9, 10**9, 0, "2026-08-02", 9, PRINTED, "")


def _verdict(run: OldRun, position: int) -> Verdict:
    if position == 0 and run.won:
        return Verdict(Outcome.BETTER, 0.7 + run.number / 1e5, 0.65, 0.75, 0.95, 8, 0, "30 % lower")
    if position == 0:
        return Verdict(
            Outcome.FAILED if run.number % 90 == 5 else Outcome.INCONCLUSIVE,
            math.nan,
            math.nan,
            math.nan,
            0.0,
            0,
            0,
            "?",
        )
    return Verdict(Outcome.WORSE, 1.2 + run.number / 1e5, 1.1, 1.3, 0.95, 8, 0, "20 % higher")


def add_files(state: Path, runs: list[OldRun]) -> None:
    """Give each run its lock and its transcript, some runs a checkpoint that was left, and derived policies a file."""
    (state / "runs").mkdir(exist_ok=True)
    (state / "policies").mkdir(exist_ok=True)
    for run in runs:
        write(state / "runs" / f"{run.id}.lock", b"", run.at)
        Transcript(transcript_path(state, run.id), run.id).close()
        os.utime(transcript_path(state, run.id), (run.at, run.at))
        if run.derived:
            write(state / "policies" / f"{run.derived}.bpf.c", b"c " * 500, run.at)
            write(state / "policies" / f"{run.derived}.toml", b"m", run.at)
    checkpoint(state / "checkpoints.sqlite", [run.id for run in runs if run.number % 25 in (7, 8)])


def checkpoint(path: Path, threads: list[str]) -> None:
    """Store checkpoints as LangGraph does."""
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.sqlite import SqliteSaver

    with SqliteSaver.from_conn_string(str(path)) as saver:
        for thread in threads:
            config = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
            config = saver.put(config, empty_checkpoint(), {}, {})
            saver.put_writes(config, [("channel", "value")], "task")


def threads(path: Path) -> set[str]:
    """Whose checkpoints are stored."""
    with closing(sqlite3.connect(path)) as database:
        both = "SELECT thread_id FROM checkpoints UNION SELECT thread_id FROM writes"
        return {thread for (thread,) in database.execute(both)}


def add_cache(cache: Path, now: float) -> Mapping[str, Path]:
    """Fill a cache folder: of each kind something old and something that was used yesterday; return the old ones."""
    names = {
        "snapshots": "snapshots/{:024x}", "objects": "objects/{:032x}", "reports": "reports/{:032x}.json",
        "headers": "pch/{:032x}-" + "a" * 32 + ".pch", "types": "btf/{:040x}", "kernels": "kernels/6.{}.0-test",
    }  # fmt: skip
    old = {}
    for kind, name in names.items():
        for number, days in ((1, 90), (2, 1)):
            path = cache / name.format(number)
            if kind in ("snapshots", "types", "kernels"):
                write(path / "vmlinuz", b"x" * 5000, now - days * DAY_S)
                os.utime(path, (now - days * DAY_S,) * 2)
            else:
                write(path, b"x" * 5000, now - days * DAY_S)
        old[kind] = cache / name.format(1)
    write(cache / "apt-kernel" / "sources.d" / "private.sources", b"", now - 90 * DAY_S)
    write(cache / "objects" / ".partial-abc" / "half", b"x", now - 3 * DAY_S)
    os.utime(cache / "objects" / ".partial-abc", (now - 3 * DAY_S,) * 2)
    return old | {"apt": cache / "apt-kernel", "leftovers": cache / "objects" / ".partial-abc"}


def write(path: Path, content: bytes, at: float | None = None) -> Path:
    """Write a file as it was written long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    at = time.time() if at is None else at
    os.utime(path, (at, at))
    return path


def files(folder: Path) -> set[str]:
    """Every file and folder below a folder, links not followed, by its path."""
    return {f"{place}/{name}" for place, folders, names in os.walk(folder) for name in (*folders, *names)}


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
