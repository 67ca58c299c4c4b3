"""Taking runs out of the repository, each whole: all that it stored, and the policies that only it knew."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from repo_store import search
from repo_store.database.engine import Database
from repo_store.database.tables import Base, CandidateRow, DerivedPolicyRow, PolicyRow, RunRow
from repo_store.retention.needed import what_rests_on
from repo_store.runs import run_row
from schedagent.core.errors import StillNeeded

OF_A_RUN = tuple(table for table in reversed(Base.metadata.sorted_tables) if "run_id" in table.primary_key.columns)
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
            forget_policies(session, orphans(session))


_SHOWN = 5
"""Runs that an error names."""


def delete_whole(session: Session, ids: Sequence[str]) -> None:
    """Delete runs, whatever rests on them."""
    for some in portions(ids):
        for table in OF_A_RUN:
            session.execute(delete(table).where(table.c.run_id.in_(some)))
        session.execute(delete(RunRow).where(RunRow.id.in_(some)))
    search.rebuild_index(session)


def forget_policies(session: Session, names: Collection[str]) -> None:
    """Delete derived policies, and bring what is searched up to date."""
    for some in portions(sorted(names)):
        session.execute(delete(DerivedPolicyRow).where(DerivedPolicyRow.name.in_(some)))
        session.execute(delete(PolicyRow).where(PolicyRow.name.in_(some)))
    search.rebuild_index(session)


def orphans(
    session: Session, *, gone: Collection[str] = (), before: str = "", needed: Collection[str] = ()
) -> frozenset[str]:
    """Return the derived policies that are nobody's: no run has them, and no other policy was derived from them.

    Args:
        gone: runs that are as good as deleted.
        before: policies that no run made are somebody's unless they were made before (ISO 8601).
        needed: policies that are somebody's whatever the repository knows.
    """
    runs = set(session.scalars(select(RunRow.id))) - set(gone)
    derived = session.execute(
        select(DerivedPolicyRow.name, DerivedPolicyRow.parent, DerivedPolicyRow.run_id, DerivedPolicyRow.created_at)
    ).all()
    parents = {row.name: row.parent for row in derived}
    tried = session.execute(select(CandidateRow.policy, CandidateRow.run_id).distinct())
    known = {*needed, *(policy for policy, run_id in tried if run_id in runs)}
    known |= {row.name for row in derived if (row.run_id in runs if row.run_id else row.created_at >= before)}
    for name in tuple(known):
        while (name := parents.get(name, "")) and name not in known:
            known.add(name)
    return frozenset(parents.keys() - known)


def portions(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the values in portions that fit one statement."""
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))
