"""Finding policies by words: SQLite's FTS5 (BM25), and plain word counts where the database has no FTS5."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from repo_store.database.tables import CandidateRow, PolicyRow, RunRow, VerdictRow
from repo_store.records import PolicyMatch
from schedagent.core.trials.trial import Outcome

INDEX_TABLE = "policy_search"
CREATE_INDEX = (
    f"CREATE VIRTUAL TABLE {INDEX_TABLE} USING fts5("
    "name, description, targets, algorithm, limitations, experience, tokenize = 'porter unicode61')"
)
_WEIGHTS = {"name": 4.0, "description": 3.0, "targets": 3.0, "algorithm": 1.0, "limitations": 0.2, "experience": 2.0}
"""A word in the limitations says where a policy loses, so it counts for little."""


@dataclass(frozen=True)
class _Document:
    """What is searched of one policy; `experience` is about the workloads on which it was better than the default."""

    name: str
    description: str
    targets: str
    algorithm: str
    limitations: str
    experience: str


def rebuild_index(session: Session) -> None:
    """Bring the index up to the policies and verdicts in the database; the library is small, so all of it each time."""
    if not has_index(session):
        return
    session.flush()
    session.execute(text(f"DELETE FROM {INDEX_TABLE}"))
    columns = ", ".join(_WEIGHTS)
    values = ", ".join(f":{column}" for column in _WEIGHTS)
    for document in _documents(session):
        session.execute(text(f"INSERT INTO {INDEX_TABLE} ({columns}) VALUES ({values})"), vars(document))


def search(session: Session, query: str, limit: int) -> list[PolicyMatch]:
    """Return the policies that have at least one word of `query` (or a word it begins), best first."""
    words = re.findall(r"[^\W_]+", query.lower())
    if not words:
        return []
    if not has_index(session):
        return _search_plain(_documents(session), words)[:limit]
    weights = ", ".join(str(weight) for weight in _WEIGHTS.values())
    rows = session.execute(
        text(
            f"SELECT name, description, -bm25({INDEX_TABLE}, {weights}) AS score FROM {INDEX_TABLE} "
            f"WHERE {INDEX_TABLE} MATCH :words ORDER BY score DESC, name LIMIT :limit"
        ),
        {"words": " OR ".join(f'"{word}"*' for word in words), "limit": limit},
    )
    return [PolicyMatch(name, description, score) for name, description, score in rows]


def has_index(session: Session) -> bool:
    """Tell whether this database has the FTS5 index."""
    if session.get_bind().dialect.name != "sqlite":
        return False
    query = text("SELECT 1 FROM sqlite_master WHERE name = :name")
    return session.execute(query, {"name": INDEX_TABLE}).first() is not None


def _search_plain(documents: Sequence[_Document], words: Sequence[str]) -> list[PolicyMatch]:
    matches = [PolicyMatch(document.name, document.description, _score(document, words)) for document in documents]
    return sorted((match for match in matches if match.score > 0), key=lambda match: (-match.score, match.name))


def _score(document: _Document, words: Sequence[str]) -> float:
    """Sum the weights of the columns that have a word beginning with one of `words`."""
    return sum(
        weight
        for column, weight in _WEIGHTS.items()
        for word in words
        if re.search(rf"(?<![^\W_]){re.escape(word)}", str(getattr(document, column)).lower())
    )


def _documents(session: Session) -> list[_Document]:
    experience = _experience(session)
    rows = session.scalars(select(PolicyRow).order_by(PolicyRow.name))
    return [
        _Document(row.name, row.description, row.targets, row.algorithm, row.limitations, experience.get(row.name, ""))
        for row in rows
    ]


def _experience(session: Session) -> dict[str, str]:
    """Return, per policy, the commands of the workloads on which a trial found it better, and their goals."""
    query = (
        select(CandidateRow.policy, RunRow.workload)
        .join(VerdictRow)
        .join(RunRow, RunRow.id == CandidateRow.run_id)
        .where(VerdictRow.outcome == Outcome.BETTER)
        .distinct()
    )
    texts: dict[str, set[str]] = {}
    for policy, workload in session.execute(query):
        texts.setdefault(policy, set()).add(f"{workload.command} {workload.goal.value}")
    return {policy: "\n".join(sorted(lines)) for policy, lines in texts.items()}
