"""The composition root: builds every collaborator from the settings, and runs or resumes a run."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernel_bpf.library import load_library
from kernel_bpf.target import prepare_target
from repo_store.records import RunRecord, RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.errors import SchedagentError, UsageError
from schedagent.core.settings import Settings, workload_environment, writable
from schedagent.core.workload import WorkloadCommand
from schedagent.options import RunOptions
from schedagent.progress import Reporter
from schedagent.state import RunState
from verifier.lab import VmLab
from verifier.microvm.image import SnapshotStore
from verifier.microvm.kernels import default_kernel
from verifier.microvm.kvm import kvm_usable
from verifier.pipeline import Verifier
from verifier.signer import Signer

MEMORY_MIB_PER_CPU = 1024
LEAST_MEMORY_MIB = 2048
MOST_CPUS = 16


def open_repository(settings: Settings) -> PolicyRepository:
    """Open the policy repository in the state folder, with the library mirrored for searching."""
    repository = PolicyRepository(writable(settings.state_dir, "SCHEDAGENT_STATE") / "repository.sqlite")
    repository.sync_policies(load_library().values())
    return repository


def open_lab(settings: Settings) -> VmLab:
    """Build the micro-VM lab: the machine has the host's CPUs (at most 16) and at most half of its memory."""
    cache = writable(settings.cache_dir)
    kernel = default_kernel(settings)
    cpus = settings.vm_cpus or min(len(os.sched_getaffinity(0)), MOST_CPUS)
    host_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    memory_mib = settings.vm_memory_mib or min(max(LEAST_MEMORY_MIB, cpus * MEMORY_MIB_PER_CPU), host_mib // 2)
    return VmLab(
        kernel,
        SnapshotStore(cache / "snapshots"),
        cpus=cpus,
        memory_mib=memory_mib,
        kvm=kvm_usable(settings, kernel).works,
        environment=workload_environment(),
        lock=cache / "lab.lock",
    )


def open_verifier(settings: Settings, lab: VmLab, include_dirs: tuple[Path, ...] = ()) -> Verifier:
    """Build the verifier for the lab's kernel, with the signing key of the state folder."""
    cache = writable(settings.cache_dir)
    state = writable(settings.state_dir, "SCHEDAGENT_STATE")
    return Verifier(
        lab,
        prepare_target(lab.kernel.vmlinuz, lab.kernel.release, cache),
        cache,
        Signer(state / "keys" / "signing.key"),
        include_dirs,
    )


def start_run(settings: Settings, workload: WorkloadCommand, options: RunOptions, reporter: Reporter) -> dict[str, Any]:
    """Run the whole loop for a new workload and return the report."""
    with open_repository(settings) as repository:
        lab = open_lab(settings)
        run_id = repository.create_run(
            workload, lab.hardware, settings=asdict(options), seed=secrets.randbelow(1 << 31)
        )
        return _drive(settings, repository, lab, repository.run(run_id), reporter)


def resume_run(settings: Settings, run_id: str, reporter: Reporter) -> dict[str, Any]:
    """Go on with a run that was cut short, behind its last finished step, and return the report.

    Raises:
        UsageError: there is no such run, it is finished, or it was measured on other hardware than this.
    """
    with open_repository(settings) as repository:
        run = repository.run(run_id)
        if run.status is RunStatus.FINISHED:
            raise UsageError(f"run {run_id} is finished", f"see what it found: schedagent runs show {run_id}")
        lab = open_lab(settings)
        if lab.hardware.key != run.hardware.key:
            raise UsageError(
                f"run {run_id} was measured on other hardware ({run.hardware}) than this ({lab.hardware})",
                "its samples and new ones cannot be compared: start a new run",
            )
        repository.resume_run(run_id)
        return _drive(settings, repository, lab, run, reporter)


def _drive(
    settings: Settings, repository: PolicyRepository, lab: VmLab, run: RunRecord, reporter: Reporter
) -> dict[str, Any]:
    """Take a run through the graph, from its last checkpoint if it has one."""
    from langgraph.checkpoint.sqlite import SqliteSaver  # 0.7 s that only these two commands need

    from schedagent.graph import build_graph
    from schedagent.nodes import RunNodes

    nodes = RunNodes(
        repository, lab, open_verifier(settings, lab), load_library(), reporter, RunOptions.from_json(run.settings)
    )
    with (
        _only_one(settings, run.id),
        SqliteSaver.from_conn_string(str(settings.state_dir / "checkpoints.sqlite")) as saver,
    ):
        graph = build_graph(nodes, saver)
        config: Any = {"configurable": {"thread_id": run.id}}
        begun = bool(graph.get_state(config).values)
        state = None if begun else RunState(run_id=run.id, iteration=0, finished=False)
        try:
            with reporter.live():
                reporter.stage(f"run {run.id}" + (" goes on" if begun else ""))
                graph.invoke(state, config, durability="sync")
        except SchedagentError:
            repository.finish_run(run.id, RunStatus.FAILED)
            raise
        except KeyboardInterrupt:
            repository.finish_run(run.id, RunStatus.INTERRUPTED)
            raise KeyboardInterrupt(f"Nothing that was measured is lost. Go on: schedagent resume {run.id}") from None
        saver.delete_thread(run.id)
    report = repository.run(run.id).report
    assert report is not None, "learning stores the report before it ends the run"
    return dict(report)


@contextmanager
def _only_one(settings: Settings, run_id: str) -> Iterator[None]:
    """Make sure no other process works on this run."""
    folder = settings.state_dir / "runs"
    folder.mkdir(exist_ok=True)
    path = folder / f"{run_id}.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is working on run {run_id}", "wait for it, or stop it first") from None
        yield
        path.unlink()
