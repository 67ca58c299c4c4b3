"""What must hold before a policy is loaded or gets more of the machine. It asks, and changes nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from kernel_bpf.observe.schedulers import named, stop_hint
from schedagent.core.deployment import Deployment, Order, Stage, Tree
from schedagent.core.errors import Refused, TokenError
from schedagent.core.terminal.foreign import quote
from schedagent.core.token import DeploymentToken, Scope, check
from schedagent.schedagentd.kernel import Kernel, KernelIdentity
from schedagent.schedagentd.limits import CGROUP_LIMITS, CGROUP_WEIGHTS, check_limits

CONFIGURATION = "/etc/schedagent/schedagentd.toml"
_KTHREADD = 2
"""Process 1 has all of user space below it, process 2 all threads of the kernel."""


@dataclass(frozen=True)
class Accepted:
    """What this machine takes on a submitter's word.

    Args:
        declared: oracles that a policy may declare away, such as "weights".
        reads: inputs that a policy may declare to go by, such as "comm".
    """

    declared: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()


NOTHING = Accepted()


def check_accepted(token: DeploymentToken, accepted: Accepted) -> None:
    """Refuse a policy that rests on more of its submitter's word than the configuration takes.

    Whether it may ignore limits of cgroups depends on those that are set, see limits.check_limits.

    Raises:
        Refused: with the setting that would accept it.
    """
    declared = [word for word in token.declares if word not in (*accepted.declared, CGROUP_WEIGHTS, CGROUP_LIMITS)]
    reads = [word for word in token.reads if word not in accepted.reads]
    if not (declared or reads):
        return
    what = [f"does not seek {_listed(declared)}"] * bool(declared) + [f"goes by {_listed(reads)}"] * bool(reads)
    settings = [
        f"{name} = [{', '.join(quoted)}]"
        for name, missing, words in (
            ("accept_declared", declared, {*accepted.declared, *token.declares}),
            ("accept_reads", reads, {*accepted.reads, *token.reads}),
        )
        if missing and (quoted := [f'"{word}"' for word in sorted(words)])
    ]
    raise Refused(
        f"the policy declares that it {' and '.join(what)}, which this machine does not accept",
        f"to accept it, set in {CONFIGURATION}: {'; '.join(settings)}, and restart schedagentd",
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def check_machine(kernel: Kernel, ours: bool) -> None:
    """Refuse a machine that cannot or must not run a policy now.

    Args:
        ours: a policy that runs is our own.

    Raises:
        Refused: with what to do.
    """
    state = kernel.state()
    if not state.available:
        raise Refused("this kernel has no sched_ext", "boot one with CONFIG_SCHED_CLASS_EXT=y; see: schedagent doctor")
    if exposed := kernel.exposed():
        raise Refused(
            f"what is loaded could starve or kill schedagentd: {'; '.join(exposed)}",
            "start it by its unit: systemctl restart schedagentd",
        )
    if not ours and state.state != "disabled":
        others = kernel.schedulers()
        raise Refused(
            f"another sched_ext scheduler is loaded: {quote(state.ops or state.state)}{named(others)}",
            stop_hint(others),
        )
    thread = kernel.core_scheduled()
    if thread is not None:
        raise Refused(
            f"core scheduling is in use (thread {thread}): together with sched_ext, tasks can hang",
            "end it for every process (prctl PR_SCHED_CORE; coresched of util-linux shows them)",
        )


def check_scope(kernel: Kernel, stage: Stage, cgroup: str, direct_full: bool) -> None:
    """Refuse a stage that a deployment cannot begin with here, or a cgroup that is not there.

    Args:
        cgroup: whose tasks a canary has, or are measured; empty for everybody's.
        direct_full: a deployment may begin with the full stage.

    Raises:
        Refused: with what to do.
    """
    if stage is Stage.TRIAL:
        raise Refused("a trial is no stage of a deployment", "begin with stage pulse")
    if stage is Stage.FULL and not direct_full:
        raise Refused("a deployment begins with stage pulse", "or allow it: direct_full in the configuration")
    if cgroup and not kernel.has_cgroup(cgroup):
        raise Refused(f"there is no cgroup {cgroup}", "see: systemd-cgls")
    if stage is Stage.CANARY:
        check_canary(kernel, cgroup)


def check_canary(kernel: Kernel, cgroup: str) -> None:
    """Refuse a canary that would only get what everybody else leaves.

    Raises:
        Refused: with what to do.
    """
    if not cgroup:
        raise Refused("stage canary needs a cgroup", "name one that owns its CPUs: --cgroup /build.slice")
    if not kernel.owns_cpus(cgroup):
        raise Refused(
            f"cgroup {cgroup} does not own its CPUs: tasks of the default scheduler come before those of a canary",
            "deploy with stage pulse; or make it a partition, see cpuset.cpus.partition in cgroups(7)",
        )


def check_cgroup_limits(kernel: Kernel, token: DeploymentToken, stage: Stage, accepted: bool) -> str:
    """Refuse a full switch to a policy that would end limits of this machine's cgroups.

    Args:
        accepted: somebody accepts that it does.

    Returns:
        what was accepted, for the record; empty if nothing was.

    Raises:
        Refused: naming the cgroups and what each would lose.
    """
    if stage is Stage.CANARY:
        return ""
    try:
        check_limits(kernel.cgroup_limits(), token.declares)
    except Refused as refused:
        if not accepted:
            raise
        return refused.message
    return ""


def tree_of(kernel: Kernel, stage: Stage, cgroup: str, pid: int) -> Tree:
    """Return the process tree whose tasks are to be measured; raise Refused if that cannot be."""
    if stage is Stage.CANARY or cgroup:
        raise Refused("a process tree is measured, without a cgroup; a canary is a cgroup", "begin with stage pulse")
    if pid <= _KTHREADD:
        raise Refused(f"process {pid} has every process of its kind below it", "name one, or a cgroup")
    tree = kernel.tree_of(pid)
    if tree is None:
        raise Refused(f"there is no process {pid}", "see: pstree -p")
    return tree


def is_gone(kernel: Kernel, deployment: Deployment) -> bool:
    """Whether the process ended that a deployment's tree begins with."""
    tree = deployment.tree
    return tree is not None and kernel.tree_of(tree.pid) != tree


def check_token(
    order: Order,
    token: str,
    public_keys: Iterable[bytes],
    identity: KernelIdentity,
    scope: Scope,
    cgroup: str,
    now: float,
    last_seen: float,
    tokens_from: float,
    used_nonces: Container[str] = (),
    accepted: Accepted = NOTHING,
) -> DeploymentToken:
    """Return the token if it allows this order on this kernel, scope and moment.

    Args:
        token: the order's own, or a newer one for the same.
        identity: of the running kernel.
        cgroup: of a partial scope; empty for the tasks of a process tree, which only a token for any tasks allows:
            they may leave every cgroup, and no token names a tree.
        tokens_from: no token that was valid earlier is accepted, see record.Record.tokens_from.
        accepted: what the configuration takes on a submitter's word.

    Raises:
        TokenError, Refused: with the first reason found.
    """
    checked = check(
        token,
        public_keys,
        artifact_digest=order.digest,
        tunables=order.tunables,
        inputs_digest=order.inputs_digest,
        report_digest=order.report_digest,
        kernel_release=identity.release,
        btf_build_id=identity.build_id,
        live_patches=identity.live_patches,
        scope=scope,
        cgroup=cgroup,
        now=now,
        last_seen=last_seen,
        used_nonces=used_nonces,
    )
    if checked.not_before < tokens_from:
        raise TokenError(
            "the token is older than the record of used tokens, which was damaged and begun again",
            "verify the policy again: schedagent verify",
        )
    check_accepted(checked, accepted)
    return checked
