"""The plan of what goes: made once, shown by `--dry-run`, and carried out by `prune` as it is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from kernel_bpf.policies.library import load_library
from repo_store.records import RunStatus
from repo_store.retention.unneeded import Question, Stays, Unneeded
from repo_store.store import PolicyRepository
from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import UsageError
from schedagent.core.retention.folder import Entry
from schedagent.core.retention.limits import RETENTION
from schedagent.core.settings import Settings
from schedagent.retention import caches, state
from schedagent.retention.deployed import known_deployments

LEAST_AGE_S = 3600.0
"""Younger things may be in use."""
UNITS_S = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@dataclass(frozen=True)
class Plan:
    """What goes.

    Args:
        question: what was asked for.
        kinds: by the name in RETENTION, without those of which nothing goes.
        stays: why each old run that stays does so, by its id.
    """

    question: Question
    kinds: Mapping[str, tuple[Entry, ...]]
    stays: Mapping[str, Stays]

    @property
    def bytes(self) -> int:
        """What goes takes about so much."""
        return sum(entry.bytes for entries in self.kinds.values() for entry in entries)

    @property
    def count(self) -> int:
        """How many things go."""
        return sum(map(len, self.kinds.values()))


def read_age(text: str) -> float:
    """Return the seconds of an age such as 30d, 12h or 2w.

    Raises:
        UsageError: it is none, or less than an hour.
    """
    number, unit = text[:-1], text[-1:]
    if unit in UNITS_S and number.isascii() and number.isdigit() and len(number) <= 5:
        age_s = int(number) * UNITS_S[unit]
        if LEAST_AGE_S <= age_s <= time.time():
            return age_s
    raise UsageError(
        f"--older-than {text} is no age", "accepted: hours, days or weeks from 1h on, such as 12h, 30d, 2w"
    )


def make_plan(settings: Settings, older_than_s: float, now: float | None = None) -> Plan:
    """Work out what may go; changes nothing.

    Args:
        now: Unix time; None for the present.

    Raises:
        RepositoryError: the repository or the checkpoints cannot be read.
    """
    now = time.time() if now is None else now
    kinds: dict[str, tuple[Entry, ...]] = {}
    stored = Unneeded()
    question = Question(now, older_than_s, {}, ())
    if settings.repository_path.is_file():
        with PolicyRepository(settings.repository_path) as repository:
            if repository.statuses() or repository.derived_policies():
                deployed = known_deployments(DaemonClient(settings.daemon.socket))
                question = Question(now, older_than_s, _library(repository), deployed)
            stored = repository.unneeded(question)
            kinds = _of_state(settings, repository, question, stored)
    for kind, entries in caches.unused(settings, question, stored.kernels).items():
        kinds[kind] = (*kinds.get(kind, ()), *entries)
    return Plan(question, {kind: kinds[kind] for kind in RETENTION if kinds.get(kind)}, stored.stays)


def _of_state(
    settings: Settings, repository: PolicyRepository, question: Question, stored: Unneeded
) -> dict[str, tuple[Entry, ...]]:
    gone = {entry.name for entry in stored.runs}
    statuses = repository.statuses()
    thin = {run_id for run_id, why in stored.stays.items() if why is Stays.LESSON}
    unfinished = {run_id for run_id, status in statuses.items() if status is not RunStatus.FINISHED} - gone
    return {
        "runs": stored.runs,
        "outputs": stored.outputs,
        "policies": stored.policies,
        "antipatterns": stored.antipatterns,
        "recommendations": stored.recommendations,
        "transcripts": tuple(state.old_transcripts(settings, question, known=statuses, lost=gone | thin)),
        "checkpoints": tuple(state.old_checkpoints(settings, unfinished=unfinished)),
        "locks": tuple(state.old_locks(settings, question)),
    }


def _library(repository: PolicyRepository) -> dict[str, str]:
    """Return the digest of the source of each policy; without the files that a library would write."""
    derived = {made.name: hashlib.sha256(made.source.encode()).hexdigest() for made in repository.derived_policies()}
    return derived | {name: info.source_digest for name, info in load_library().items()}
