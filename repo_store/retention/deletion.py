"""Taking runs out of the repository, each whole: all that it stored, and the policies that only it knew."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from sqlalchemy import and_, delete, select
from sqlalchemy.orm import Session

from repo_store import search
from repo_store.database.engine import Database
from repo_store.database.tables import Base, CandidateRow, DerivedPolicyRow, PolicyRow, RunRow
from repo_store.retention.needed import what_rests_on
from repo_store.runs import run_row
from schedagent.core.errors import StillNeeded

_OF_A_RUN = tuple(table for table in reversed(Base.metadata.sorted_tables) if "run_id" in table.primary_key.columns)
"""The tables of what a run stores, children before their parents."""
_AT_ONCE = 500
"""Values in one statement: databases bound them."""


class DeletionStore(Database):
    """How runs leave the repository."""

    def delete_runs(self, ids: Collection[str]) -> None:
        """Delete runs whole, all of these or none: their results and approvals, and the policies that only they knew.

        The caller makes sure that no process works on them: it holds their locks.

        Raises:
            UsageError: there is no such run.
            StillNeeded: something rests on one of them; the message names what.
        """
        with self._transaction() as session:
            for run_id in ids:
                run_row(session, run_id)
            if reasons := what_rests_on(session, ids):
                shown = "; ".join(f"run {run_id}: {reason}" for run_id, reason in sorted(reasons.items())[:_SHOWN])
                more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
                raise StillNeeded(f"nothing was deleted, these are needed: {shown}{more}", "leave them out")
            delete_whole(session, sorted(ids))


_SHOWN = 5
"""Runs that an error names."""


def delete_whole(session: Session, ids: Sequence[str]) -> None:
    """Delete runs, whatever rests on them, and the policies whose run is gone and that nothing else knows."""
    for some in portions(ids):
        for table in _OF_A_RUN:
            session.execute(delete(table).where(table.c.run_id.in_(some)))
        session.execute(delete(RunRow).where(RunRow.id.in_(some)))
    gone = and_(DerivedPolicyRow.run_id != "", DerivedPolicyRow.run_id.not_in(select(RunRow.id)))
    orphans = set(session.scalars(select(DerivedPolicyRow.name).where(gone)))
    forget_policies(session, sorted(orphans - known_policies(session, but_not=orphans)))


def forget_policies(session: Session, names: Sequence[str]) -> None:
    """Delete derived policies, and bring what is searched up to date."""
    for some in portions(names):
        session.execute(delete(DerivedPolicyRow).where(DerivedPolicyRow.name.in_(some)))
        session.execute(delete(PolicyRow).where(PolicyRow.name.in_(some)))
    search.rebuild_index(session)


def known_policies(session: Session, *, but_not: Collection[str]) -> set[str]:
    """Return the policies that a run has a candidate of, derived ones but for some, and the ancestors of all these."""
    rows = session.execute(select(DerivedPolicyRow.name, DerivedPolicyRow.parent))
    parents = {row.name: row.parent for row in rows}
    known = {*session.scalars(select(CandidateRow.policy).distinct()), *(parents.keys() - set(but_not))}
    for name in tuple(known):
        while (name := parents.get(name, "")) and name not in known:
            known.add(name)
    return known


def portions(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the values in portions that fit one statement."""
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))
