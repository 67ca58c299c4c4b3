"""What must hold before a policy is loaded. Pure but for what it is told of the kernel."""

from __future__ import annotations

from collections.abc import Container, Iterable

from schedagent.core.deployment import Order
from schedagent.core.errors import Refused, TokenError
from schedagent.core.token import DeploymentToken, Scope, check
from schedagent.schedagentd.kernel import Kernel, named, stop_hint


def check_machine(kernel: Kernel, ours: bool) -> None:
    """Refuse a machine that cannot or must not run a policy now.

    Args:
        ours: a policy that runs is our own.

    Raises:
        Refused: with what to do.
    """
    state = kernel.state()
    if not state.available:
        raise Refused(
            "this kernel has no sched_ext", "boot one with CONFIG_SCHED_CLASS_EXT=y; schedagent doctor says more"
        )
    if not ours and state.state != "disabled":
        found = kernel.schedulers()
        raise Refused(
            f"another sched_ext scheduler is loaded: {state.ops or state.state}{named(found)}", stop_hint(found)
        )
    process = kernel.core_scheduled()
    if process is not None:
        raise Refused(
            f"core scheduling is in use (process {process}): together with sched_ext, tasks can hang",
            "end it for every process (prctl PR_SCHED_CORE; coresched of util-linux shows them)",
        )


def check_token(
    order: Order,
    token: str,
    public_keys: Iterable[bytes],
    identity: tuple[str, str],
    scope: Scope,
    cgroup: str,
    now: float,
    last_seen: float,
    tokens_from: float,
    used_nonces: Container[str] = (),
) -> DeploymentToken:
    """Return the token if it allows this order on this kernel, scope and moment.

    Args:
        token: the order's own, or a newer one for the same.
        identity: release and build id of the running kernel.
        cgroup: of a partial scope; empty for the tasks of a process tree, which only a token for any tasks allows:
            they may leave every cgroup, and no token names a tree.
        tokens_from: no token that was valid earlier is accepted, see record.Record.tokens_from.

    Raises:
        TokenError: with the first reason found.
    """
    found = check(
        token,
        public_keys,
        artifact_digest=order.digest,
        tunables=order.tunables,
        inputs_digest=order.inputs_digest,
        report_digest=order.report_digest,
        kernel_release=identity[0],
        btf_build_id=identity[1],
        scope=scope,
        cgroup=cgroup,
        now=now,
        last_seen=last_seen,
        used_nonces=used_nonces,
    )
    if found.not_before < tokens_from:
        raise TokenError(
            "the token is older than the record of used tokens, which was damaged and begun anew",
            "verify the policy again: schedagent verify",
        )
    return found
