"""The composition root: builds every collaborator from the settings, and runs or resumes a run."""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel_bpf.library import load_library
from kernel_bpf.target import prepare_target
from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.errors import RepositoryError, SchedagentError, UsageError
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

if TYPE_CHECKING:
    from schedagent.nodes import RunNodes

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
        return drive(settings, build_nodes(settings, repository, lab, options, reporter), repository, run_id, reporter)


def resume_run(settings: Settings, run_id: str, reporter: Reporter) -> dict[str, Any]:
    """Go on with a run that was cut short, behind its last finished step, and return the report.

    Raises:
        UsageError: there is no such run, it is finished, or it was measured on other hardware than this.
    """
    with open_repository(settings) as repository:
        run = repository.run(run_id)
        repository.resume_run(run_id)
        lab = open_lab(settings)
        if lab.hardware.key != run.hardware.key:
            raise UsageError(
                f"run {run_id} was measured on other hardware ({run.hardware}) than this ({lab.hardware})",
                "its samples and new ones cannot be compared: start a new run",
            )
        options = RunOptions.from_json(run.settings)
        return drive(settings, build_nodes(settings, repository, lab, options, reporter), repository, run_id, reporter)


def build_nodes(
    settings: Settings, repository: PolicyRepository, lab: VmLab, options: RunOptions, reporter: Reporter
) -> RunNodes:
    """Give the four nodes their collaborators."""
    from schedagent.nodes import RunNodes

    return RunNodes(repository, lab, open_verifier(settings, lab), load_library(), reporter, options)


def drive(
    settings: Settings, nodes: RunNodes, repository: PolicyRepository, run_id: str, reporter: Reporter
) -> dict[str, Any]:
    """Take a run through the graph, from its last checkpoint if it has one, and return the report.

    Raises:
        UsageError: another process works on this run.
        KeyboardInterrupt: the user stopped it; the argument says how to go on.
    """
    from langgraph.checkpoint.sqlite import SqliteSaver  # 0.7 s that only two commands need

    from schedagent.graph import build_graph

    checkpoints = settings.state_dir / "checkpoints.sqlite"
    with only_one(settings, run_id), sound(checkpoints), SqliteSaver.from_conn_string(str(checkpoints)) as saver:
        graph = build_graph(nodes, saver)
        config: Any = {"configurable": {"thread_id": run_id}}
        begun = bool(graph.get_state(config).values)
        state = None if begun else RunState(run_id=run_id, iteration=0, finished=False)
        try:
            with reporter.live():
                reporter.stage(f"run {run_id}" + (" goes on" if begun else ""))
                graph.invoke(state, config, durability="sync")
        except SchedagentError:
            repository.finish_run(run_id, RunStatus.FAILED)
            raise
        except KeyboardInterrupt:
            repository.finish_run(run_id, RunStatus.INTERRUPTED)
            raise KeyboardInterrupt(f"Nothing that was measured is lost. Go on: schedagent resume {run_id}") from None
        saver.delete_thread(run_id)
    report = repository.run(run_id).report
    assert report is not None, "learning stores the report before it ends the run"
    return dict(report)


@contextmanager
def sound(checkpoints: Path) -> Iterator[None]:
    """Turn a damaged checkpoint file into an error that says how to go on: the repository holds every result."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise RepositoryError(
            f"the checkpoint file {checkpoints} cannot be used: {error}",
            f"move it away, nothing measured is in it: mv {checkpoints} {checkpoints}.broken",
        ) from error


@contextmanager
def only_one(settings: Settings, run_id: str) -> Iterator[None]:
    """Make sure no other process works on this run; raise UsageError if one does."""
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
