"""The policy repository for who only reads runs: opened without the library, the lab and the verifier of `opening`."""

from __future__ import annotations

from repo_store.store import PolicyRepository
from schedagent.core.settings import Settings, writable


def open_stored(settings: Settings) -> PolicyRepository:
    """Open the policy repository in the state folder, which is created if there is none."""
    writable(settings.state_dir, "SCHEDAGENT_STATE")
    return PolicyRepository(settings.repository_path)
