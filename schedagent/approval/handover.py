"""From a finished run to schedagentd: what a deployment of its winner needs."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from repo_store.store import PolicyRepository
from schedagent.approval.approvals import deployment, winner
from schedagent.core import token
from schedagent.core.errors import PolicyError, UsageError
from schedagent.core.policies.artifact import PolicyArtifact


def handover(
    repository: PolicyRepository, run_id: str, compiled: Callable[[str, str], PolicyArtifact], policy: str = ""
) -> dict[str, Any]:
    """Return what schedagentd wants to know of a run's winner, and `digest`: the object's.

    The object is not kept: it is compiled again, to the same bytes.

    Args:
        compiled: compiles a policy, given its name, for a kernel, given its release.
        policy: who must have won; empty for whoever did.

    Raises:
        UsageError: there is no such run, or it issues no token (for this policy).
        PolicyError: the object is not the one that was verified.
    """
    issued, won = deployment(repository, run_id), winner(repository, run_id)
    if issued is None or won is None or (policy and won[0].policy != policy):
        wanted = policy or "a winner"
        raise UsageError(
            f"run {run_id} issues no token for {wanted}", f"see what it found: schedagent runs show {run_id}"
        )
    candidate, permit = won[0], token.decode(issued["token"])
    artifact = compiled(candidate.policy, permit.kernel_release)
    if artifact.digest != permit.artifact_digest:
        raise PolicyError(
            f"compiling {candidate.policy} gives another object ({artifact.digest[:12]}) than was verified "
            f"({permit.artifact_digest[:12]})",
            "compiler or kernel types have changed: optimise it again",
        )
    return {
        "digest": artifact.digest,
        "policy": candidate.policy,
        "object_base64": base64.b64encode(artifact.object_bytes).decode(),
        "tunables": dict(permit.tunables),
        "history": [list(pair) for pair in candidate.history],
        "classes": [list(pair) for pair in candidate.classes],
        "report_digest": permit.report_digest,
        "token": issued["token"],
    }
