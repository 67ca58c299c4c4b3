"""What is old and needed by nothing, worked out in one go, so that what is shown is what goes.

Needed is what a person, the agent service or schedagentd may come back to, what proves a policy, and what planning
learns from: it plans the same before and after.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import JSON, Text, cast, func, or_, select, type_coerce
from sqlalchemy.orm import Session

from repo_store.database.tables import (
    AntipatternRow,
    DerivedPolicyRow,
    ProfileRow,
    RecommendationRow,
    RequestRow,
    RunRow,
    SampleRow,
    VerdictRow,
    VerificationRow,
)
from repo_store.knowledge import all_lessons
from repo_store.records import RunStatus
from repo_store.retention.deletion import OF_A_RUN, orphans
from repo_store.retention.needed import ALIVE, awaited
from repo_store.rows import identity
from schedagent.core.retention.folder import Entry
from schedagent.core.token import LONGEST_LIFETIME_S
from schedagent.core.trials.lesson import Lesson
from schedagent.core.trials.trial import Outcome

_DAY_S = 86400.0


class Stays(StrEnum):
    """Why an old run stays, in the words of a list: "Stays: 3 not finished, 12 ..."."""

    UNFINISHED = "not finished"
    AWAITED = "waited for by a person or the agent service"
    DEPLOYED = "deployed"
    PERMITTED = "with a token that may be valid"
    PROOF = "the newest proof of a policy"
    LESSON = "that planning learns from"
    """Of these the figures stay, not what the workload printed."""


@dataclass(frozen=True)
class Deployed:
    """A deployment that schedagentd knows.

    Args:
        policy: its name.
        digest: hex SHA-256 of the object.
        created_at: Unix time.
    """

    policy: str
    digest: str
    created_at: float


@dataclass(frozen=True)
class Question:
    """What is asked for.

    Args:
        now: Unix time.
        older_than_s: what was used or ended later than so long ago stays.
        library: digest of the present source of each policy, by name.
        deployed: what schedagentd knows; None if that cannot be known: then all winners stay.
    """

    now: float
    older_than_s: float
    library: Mapping[str, str]
    deployed: tuple[Deployed, ...] | None

    @property
    def before(self) -> float:
        """Unix time before which things are old."""
        return self.now - self.older_than_s


@dataclass(frozen=True)
class Unneeded:
    """What may go; `used_at` of each is when it ended or was made.

    Args:
        runs: to be deleted whole.
        outputs: runs of which only the figures are needed.
        policies: derived policies.
        antipatterns: by `antipattern_name`.
        recommendations: with their requests.
        stays: why each other old run stays, by its id.
        kernels: releases of the kernels that runs may be continued on, or their winners be verified on again.
    """

    runs: tuple[Entry, ...] = ()
    outputs: tuple[Entry, ...] = ()
    policies: tuple[Entry, ...] = ()
    antipatterns: tuple[Entry, ...] = ()
    recommendations: tuple[Entry, ...] = ()
    stays: Mapping[str, Stays] = field(default_factory=dict)
    kernels: frozenset[str] = frozenset()


def unneeded(session: Session, question: Question) -> Unneeded:
    """Work out what may go."""
    recommendations = old_recommendations(session, question)
    old = _old_runs(session, question)
    stays = why_runs_stay(session, question)
    gone = old.keys() - stays.keys()
    sizes = _sizes(session, gone)
    outputs = _outputs(session, {run_id for run_id, why in stays.items() if why is Stays.LESSON})
    lost = lost_policies(session, question, gone)
    failures = stale_antipatterns(session, question, lost)
    return Unneeded(
        tuple(Entry(run_id, sizes[run_id], old[run_id]) for run_id in sorted(gone)),
        tuple(Entry(run_id, outputs[run_id], old[run_id]) for run_id in sorted(outputs)),
        tuple(_policies(session, lost)),
        tuple(Entry(antipattern_name(row), _length(row.reason, row.tunables), _unix(row.at)) for row in failures),
        tuple(Entry(row.id, _length(row.why, row.evidence), row.expires_at) for row in recommendations),
        stays,
        _kernels(session, {*gone, *(run_id for run_id, why in stays.items() if why in (Stays.PROOF, Stays.LESSON))}),
    )


def lost_policies(session: Session, question: Question, gone: Collection[str]) -> frozenset[str]:
    """Return the derived policies that nothing needs once these runs are gone."""
    if question.deployed is None:
        return orphans(session, gone=gone)  # those that no run made may be deployed
    deployed = {deployment.policy for deployment in question.deployed}
    return orphans(session, gone=gone, before=_iso(question.before), needed=deployed)


def old_recommendations(session: Session, question: Question) -> Sequence[RecommendationRow]:
    """Return those that nobody can act upon any more, and whose requests ended; the service counts those of a day."""
    before = min(question.before, question.now - _DAY_S)
    recent = select(RequestRow.recommendation_id).where(
        or_(RequestRow.progress.in_(ALIVE), RequestRow.asked_at >= before, RequestRow.ended_at >= before)
    )
    query = select(RecommendationRow).where(RecommendationRow.expires_at < before, RecommendationRow.id.not_in(recent))
    return session.scalars(query.order_by(RecommendationRow.id)).all()


def stale_antipatterns(session: Session, question: Question, lost: Collection[str]) -> list[AntipatternRow]:
    """Return the old failures that planning does not heed: of policies that have changed since, or are gone.

    Args:
        lost: policies that are as good as gone.
    """
    present = {name: digest for name, digest in question.library.items() if name not in lost}
    rows = session.scalars(select(AntipatternRow).where(AntipatternRow.at < _iso(question.before)))
    return [row for row in rows if not _heeded(row, present)]


def _heeded(row: AntipatternRow, present: Mapping[str, str]) -> bool:
    return row.policy in present and row.source_digest in ("", present[row.policy])


def antipattern_name(row: AntipatternRow) -> str:
    """Return what distinguishes a failure from all others."""
    return f"{row.policy} at {row.gate}: {'/'.join(map(str, identity(row)))}"


def _old_runs(session: Session, question: Question) -> dict[str, float]:
    """Return when each old run ended, or began if it has not."""
    ended = {row.id: _unix(row.finished_at or row.started_at) for row in session.execute(_RUNS)}
    return {run_id: at for run_id, at in ended.items() if at < question.before}


_RUNS = select(RunRow.id, RunRow.started_at, RunRow.finished_at)


def why_runs_stay(session: Session, question: Question) -> Mapping[str, Stays]:
    """Return why old runs stay; the first reason counts."""
    old = _old_runs(session, question)
    lost = {row.id for row in old_recommendations(session, question)}
    lessons = sorted(all_lessons(session), key=lambda lesson: lesson.at)
    stays: dict[str, Stays] = {}
    for why, runs in (
        (Stays.AWAITED, {*awaited(session), *_mentioned(session, lost)}),
        (Stays.UNFINISHED, _resumable(session)),
        (Stays.DEPLOYED, _deployed(session, question, lessons)),
        (Stays.PERMITTED, _permitted(question, lessons, old)),
        (Stays.PROOF, _proofs(lessons)),
        (Stays.LESSON, {*_learned_from(session, question, lessons), *_newest_of_workloads(session)}),
    ):
        stays |= {run_id: why for run_id in runs if run_id in old and run_id not in stays}
    return stays


def _mentioned(session: Session, lost: Collection[str]) -> Iterator[str]:
    """Runs that recommendations which stay, or their requests, name."""
    for recommendation_id, evidence in session.execute(select(RecommendationRow.id, RecommendationRow.evidence)):
        if recommendation_id not in lost:
            yield str(evidence.get("run", ""))
    for recommendation_id, run_id in session.execute(select(RequestRow.recommendation_id, RequestRow.run_id)):
        if recommendation_id not in lost:
            yield run_id


def _resumable(session: Session) -> Iterator[str]:
    """Runs that are not finished and have observed their workload: to resume others is to begin again."""
    begun = RunRow.id.in_(select(ProfileRow.run_id))
    yield from session.scalars(select(RunRow.id).where(RunRow.status != RunStatus.FINISHED, begun))


def _deployed(session: Session, question: Question, lessons: Sequence[Lesson]) -> Iterator[str]:
    """Runs whose winner is in schedagentd's record, or may be if that is unknown.

    A token holds for a week at most, so a run that ended earlier than a week before a deployment did not permit it.
    """
    winners = {lesson.run_id for lesson in lessons if lesson.outcome is Outcome.BETTER}
    if question.deployed is None:
        yield from winners
        return
    ended = {row.id: _unix(row.finished_at or row.started_at) for row in session.execute(_RUNS)}
    for deployment in question.deployed:
        begun = {run_id for run_id in winners if 0 <= deployment.created_at - ended[run_id] <= LONGEST_LIFETIME_S}
        for run_id in begun:
            if deployment.digest in _verified(session, run_id):
                yield run_id


def _verified(session: Session, run_id: str) -> set[str]:
    """Return the digests of the objects that a run had verified."""
    # As plain JSON: to make reports of it takes twice as long.
    reports = select(type_coerce(VerificationRow.report, JSON)).where(VerificationRow.run_id == run_id)
    return {report["artifact_digest"] for report in session.scalars(reports)}


def _permitted(question: Question, lessons: Sequence[Lesson], old: Mapping[str, float]) -> Iterator[str]:
    for lesson in lessons:
        ended = old.get(lesson.run_id, -math.inf)
        if lesson.outcome is Outcome.BETTER and question.now - ended <= LONGEST_LIFETIME_S:
            yield lesson.run_id


def _proofs(lessons: Sequence[Lesson]) -> Iterable[str]:
    """The newest run that found a policy better, for each workload and hardware; `lessons` come oldest first."""
    better = (lesson for lesson in lessons if lesson.outcome is Outcome.BETTER)
    return {(proof.workload_key, proof.hardware_key, proof.policy): proof.run_id for proof in better}.values()


def _learned_from(session: Session, question: Question, lessons: Sequence[Lesson]) -> Iterable[str]:
    """Runs with the latest verdict on a configuration of a policy that may be planned with, see agents.planner.rules.

    A derived policy that won nowhere is planned with by no later run.
    """
    derived = set(session.scalars(select(DerivedPolicyRow.name)))
    planned = question.library.keys() - derived | {
        lesson.policy for lesson in lessons if lesson.outcome is Outcome.BETTER
    }
    says = (lesson for lesson in lessons if not math.isnan(lesson.ratio) or lesson.outcome is Outcome.FAILED)
    return {
        (lesson.workload_key, lesson.hardware_key, lesson.policy, lesson.tunables): lesson.run_id
        for lesson in says
        if lesson.policy in planned
    }.values()


def _newest_of_workloads(session: Session) -> Iterable[str]:
    """The newest run with a verdict on each workload and hardware: it is what others are compared with."""
    compared = RunRow.id.in_(select(VerdictRow.run_id)), RunRow.id.in_(select(ProfileRow.run_id))
    query = select(RunRow.workload_key, RunRow.hardware_key, RunRow.id).where(*compared)
    rows = session.execute(query.order_by(RunRow.started_at, RunRow.id))
    return {(row.workload_key, row.hardware_key): row.id for row in rows}.values()


def _policies(session: Session, names: Collection[str]) -> Iterator[Entry]:
    for row in session.scalars(select(DerivedPolicyRow).order_by(DerivedPolicyRow.name)):
        if row.name in names:
            yield Entry(row.name, _length(row.source, row.manifest, row.spec), _unix(row.created_at))


def _kernels(session: Session, but_not: Collection[str]) -> frozenset[str]:
    hardware = session.execute(select(RunRow.id, RunRow.hardware))
    return frozenset(row.hardware.kernel_release for row in hardware if row.id not in but_not)


def _sizes(session: Session, runs: Collection[str]) -> Mapping[str, int]:
    """Return about how many bytes each run takes in the database: those of its values as text."""
    sizes: Counter[str] = Counter()
    for table, key in ((RunRow.__table__, "id"), *((table, "run_id") for table in OF_A_RUN)):
        length = sum(func.coalesce(func.length(cast(type_coerce(column, Text), Text)), 0) for column in table.columns)
        for run_id, size in session.execute(select(table.c[key], func.sum(length)).group_by(table.c[key])):
            sizes[run_id] += int(size) if run_id in runs else 0
    return sizes


def _outputs(session: Session, runs: Collection[str]) -> Mapping[str, int]:
    """Return how much the workload printed in the trials of runs, in characters."""
    length = func.sum(func.length(SampleRow.output_tail))
    printed = select(SampleRow.run_id, length).group_by(SampleRow.run_id).having(length > 0)
    return {run_id: int(size) for run_id, size in session.execute(printed) if run_id in runs}


def _length(*values: object) -> int:
    return sum(len(str(value)) for value in values)


def _unix(iso: str) -> float:
    """Return a stored time as Unix time; one that cannot be read is as old as can be."""
    try:
        return datetime.fromisoformat(iso).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")
