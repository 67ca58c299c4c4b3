"""Policies in the repository: those derived in runs, and a mirror of the library for searching."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sqlalchemy import select

from repo_store import search
from repo_store.database.engine import Database
from repo_store.database.tables import CandidateRow, DerivedPolicyRow, PolicyRow, VerdictRow
from repo_store.records import PolicyMatch
from repo_store.rows import equal, from_row, to_row
from schedagent.core.errors import NameTaken
from schedagent.core.policies.proposal import DerivedPolicy
from schedagent.core.trials.trial import Outcome


class Described(Protocol):
    """What is searched of a policy, or of a scheduler; see core.policies.policy.PolicyInfo."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def target_workloads(self) -> tuple[str, ...]: ...

    @property
    def algorithm(self) -> str: ...

    @property
    def limitations(self) -> str: ...


class PolicyStore(Database):
    """The policies of the repository."""

    def keep_policy(self, derived: DerivedPolicy) -> DerivedPolicy:
        """Store a policy and return what is stored: the same content under this name may be there from another run.

        Raises:
            NameTaken: a policy of other content has this name; what was stored once is never changed.
        """
        with self._transaction() as session:
            row = session.get(DerivedPolicyRow, derived.name)
            if row is None:
                session.add(to_row(DerivedPolicyRow, derived))
                return derived
            stored = from_row(DerivedPolicy, row)
        if stored.digest != derived.digest:
            raise NameTaken(f"another policy is called {derived.name}", "give it another name")
        return stored

    def derived_policies(self) -> list[DerivedPolicy]:
        """Return every policy that was ever derived, by name."""
        query = select(DerivedPolicyRow).order_by(DerivedPolicyRow.name)
        with self._session() as session:
            return [from_row(DerivedPolicy, row) for row in session.scalars(query)]

    def policies_of(self, run_id: str) -> set[str]:
        """Return the names of the policies that a run has candidates of, or derived."""
        planned = select(CandidateRow.policy).where(CandidateRow.run_id == run_id)
        derived = select(DerivedPolicyRow.name).where(DerivedPolicyRow.run_id == run_id)
        with self._session() as session:
            return {*session.scalars(planned), *session.scalars(derived)}

    def winners(self) -> set[str]:
        """Return the names of the policies that were better than the default in some trial."""
        better = select(CandidateRow.policy).join(VerdictRow).where(VerdictRow.outcome == Outcome.BETTER)
        with self._session() as session:
            return set(session.scalars(better.distinct()))

    def sync_policies(self, policies: Iterable[Described]) -> None:
        """Make the mirror of the policy library equal to `policies`, schedulers with a loader of their own included."""
        wanted = {policy.name: _mirrored(policy) for policy in policies}
        with self._transaction() as session:
            stored = {row.name: row for row in session.scalars(select(PolicyRow))}
            if equal(stored.values(), wanted.values()):
                return
            for name in stored.keys() - wanted.keys():
                session.delete(stored[name])
            for row in wanted.values():
                session.merge(row)
            search.rebuild_index(session)

    def search_policies(self, text: str, limit: int = 10) -> list[PolicyMatch]:
        """Return the policies whose description, or the workloads they were better on, match `text`, best first."""
        with self._session() as session:
            return search.search(session, text, limit)


def _mirrored(policy: Described) -> PolicyRow:
    return PolicyRow(
        name=policy.name,
        description=policy.description,
        targets=" ".join(policy.target_workloads),
        algorithm=policy.algorithm,
        limitations=policy.limitations,
    )
