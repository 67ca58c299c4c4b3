"""The composition root: builds every collaborator from the settings, and runs or resumes a run."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import secrets
import shlex
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from agents.exchange import Json
from agents.transcript import Exchange, Replay, read_transcript, transcript_path
from kernel_bpf.library import load_library
from kernel_bpf.target import prepare_target
from repo_store.records import RunStatus
from repo_store.rewind import rewind
from repo_store.store import PolicyRepository
from schedagent.core.approval import Decision
from schedagent.core.artifact import PolicyArtifact
from schedagent.core.errors import RepositoryError, SchedagentError, UsageError
from schedagent.core.listener import Admission
from schedagent.core.policy import PolicyInfo
from schedagent.core.settings import REPOSITORY, Settings, workload_environment, writable
from schedagent.core.trusted import load_trusted
from schedagent.core.verification import GateResult, Verified
from schedagent.core.workload import WorkloadCommand
from schedagent.library import Library, worth_trying
from schedagent.options import RunOptions
from schedagent.progress import Reporter
from schedagent.state import first_state
from verifier.client import RemoteVerifier
from verifier.kept import KeptReports
from verifier.lab import VmLab
from verifier.microvm.image import SnapshotStore
from verifier.microvm.kernels import KernelImage, default_kernel, find_kernels
from verifier.microvm.kvm import kvm_usable
from verifier.pipeline import Bench, Verifier
from verifier.service import Limits, VerifierService
from verifier.signer import Signer
from verifier.worker import Submission

if TYPE_CHECKING:
    from schedagent.approval import Approvals
    from schedagent.graph import Approvals as Questions
    from schedagent.model_agents import ModelAgents
    from schedagent.nodes import RunNodes

MADE_POLICIES = "policies"
"""In the state folder."""

MEMORY_MIB_PER_CPU = 1024
LEAST_MEMORY_MIB = 2048
MOST_CPUS = 16


def open_repository(settings: Settings) -> PolicyRepository:
    """Open the policy repository in the state folder, with what a new run may plan with mirrored for searching."""
    repository = PolicyRepository(writable(settings.state_dir, "SCHEDAGENT_STATE") / REPOSITORY)
    try:
        repository.sync_policies(open_run_library(settings, repository).values())
    except BaseException:
        repository.close()
        raise
    return repository


def open_run_library(settings: Settings, repository: PolicyRepository, run_id: str = "") -> Library:
    """Open the library of a run: the bundled policies, those that have won somewhere, and its own.

    Args:
        run_id: the run; empty for one that has not begun.
    """
    return Library(load_library(), repository, settings.state_dir / MADE_POLICIES, worth_trying(repository, run_id))


def whole_library(settings: Settings) -> dict[str, PolicyInfo]:
    """Return all policies, bundled and made; looking does not create a repository."""
    if not (settings.state_dir / REPOSITORY).is_file():
        return dict(load_library())
    with PolicyRepository(settings.state_dir / REPOSITORY) as repository:
        return dict(Library(load_library(), repository, settings.state_dir / MADE_POLICIES))


def open_lab(settings: Settings, kernel: KernelImage | None = None) -> VmLab:
    """Build the micro-VM lab: the machine has the host's CPUs (at most 16) and at most half of its memory.

    Args:
        kernel: what it runs; None for the kernel of the settings, or the newest.
    """
    cache = writable(settings.cache_dir)
    kernel = kernel or default_kernel(settings)
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


def open_verifier(settings: Settings) -> Verifier | RemoteVerifier:
    """Return the verifier service whose socket the settings name, else a verifier in this process."""
    if settings.verifier_socket:
        return open_remote_verifier(settings.verifier_socket, settings, default_kernel(settings).release)
    return open_local_verifier(settings)


def open_remote_verifier(socket_path: Path, settings: Settings, kernel: str) -> RemoteVerifier:
    """Return the verifier service at a socket.

    Args:
        kernel: release to verify for; empty for the service's default.
    """
    return RemoteVerifier(socket_path, kernel=kernel, trusted=load_trusted(settings.keys_dir / "trusted"))


def open_local_verifier(settings: Settings, *, all_kernels: bool = False, sign: bool = True) -> Verifier:
    """Build a verifier in this process.

    Args:
        all_kernels: also give each policy to the other kernels of the cache; else only to the one it is proved on.
        sign: with the signing key of the state folder; else no key is looked for, and no tokens are issued.
    """
    cache = writable(settings.cache_dir)
    first = default_kernel(settings)
    others = [image for image in find_kernels(settings) if image.release != first.release] if all_kernels else []
    benches = tuple(open_bench(settings, image) for image in (first, *others))
    if not sign:
        return Verifier(benches, cache)
    signer = open_signer(settings)
    return Verifier(benches, cache, signer, kept=KeptReports(cache / "reports", signer.vouches))


def open_signer(settings: Settings, *, create: bool = True) -> Signer:
    """Open the verifier's signing key in the state folder, which is made if there is none."""
    if create:
        writable(settings.state_dir, "SCHEDAGENT_STATE")
    return Signer(settings.keys_dir / "signing.key", create=create)


@dataclass(frozen=True)
class ServiceBench:
    """What the verifier service does with a request, in a process of its own."""

    settings: Settings

    def verify(self, submission: Submission, on_gate: Callable[[GateResult], None]) -> Verified:
        """Take it through all gates."""
        verifier = replace(
            self._verifier(submission), on_gate=on_gate, scope=submission.scope, cgroup=submission.cgroup
        )
        return verifier.verify(submission.candidate, submission.info)

    def compile(self, submission: Submission) -> PolicyArtifact:
        """Only compile it."""
        return self._verifier(submission).compile(submission.info)

    def _verifier(self, submission: Submission) -> Verifier:
        settings = replace(self.settings, kernel_release=submission.kernel or self.settings.kernel_release)
        verifier = open_local_verifier(settings, all_kernels=not submission.kernel)
        return replace(verifier, include_dirs=(submission.include_dir,))


def serve_verifier(settings: Settings, listener: socket.socket, admission: Admission) -> None:
    """Be the verifier service until SIGTERM or SIGINT."""
    open_signer(settings)  # a key that cannot be used is better known now than after the first policy's gates
    default_kernel(settings)
    limits = Limits(parallel=len(os.sched_getaffinity(0)))
    asyncio.run(VerifierService(ServiceBench(settings), admission, limits).run(listener, preload=[__name__]))


def open_bench(settings: Settings, kernel: KernelImage) -> Bench:
    """Build the lab of one kernel and look up its types."""
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    return Bench(open_lab(settings, kernel), target)


def start_run(
    settings: Settings, workload: WorkloadCommand, options: RunOptions, reporter: Reporter, run_id: str = ""
) -> dict[str, Any]:
    """Run the whole loop for a new workload and return the report.

    Args:
        run_id: the run's id, for who has to know it beforehand; empty for any.
    """
    with open_repository(settings) as repository:
        lab = open_lab(settings)
        nodes = build_nodes(settings, repository, lab, options, reporter)
        run_id = repository.create_run(
            workload, lab.hardware, settings=asdict(options), seed=secrets.randbelow(1 << 31), run_id=run_id
        )
        return drive(settings, nodes, repository, run_id, reporter)


def resume_run(settings: Settings, run_id: str, reporter: Reporter) -> dict[str, Any]:
    """Go on with a run that was cut short, behind its last finished step, and return the report.

    Raises:
        UsageError: there is no such run, it is finished, or it was measured on other hardware than this.
    """
    with open_repository(settings) as repository:
        nodes = nodes_of(settings, repository, run_id, reporter)
        return drive(settings, nodes, repository, run_id, reporter)


def decide_run(settings: Settings, run_id: str, decision: Decision, digest: str, reporter: Reporter) -> dict[str, Any]:
    """Store what a person decided on what a run waits for, go on with the run, and return the report.

    Args:
        digest: of what was shown, or how it begins; empty for whatever waits.

    Raises:
        UsageError: it waits for nothing, for something else, or another process works on it; or as `resume_run`.
    """
    with open_repository(settings) as repository:
        nodes = nodes_of(settings, repository, run_id, reporter)
        with only_one(settings, run_id):
            approvals_of(repository, run_id, nodes).decide(decision, digest)
        return drive(settings, nodes, repository, run_id, reporter)


def read_run_transcript(settings: Settings, run_id: str) -> tuple[Json, tuple[Exchange, ...]]:
    """Return what a run has asked models: the head of its transcript, and the exchanges.

    Raises:
        UsageError: there is no such run, or it asked no model.
        RepositoryError: the transcript is damaged.
    """
    with open_repository(settings) as repository:
        repository.run(run_id)
    return read_transcript(existing_transcript(settings, run_id))


def replay_run(settings: Settings, run_id: str, reporter: Reporter) -> dict[str, Any]:
    """Run the agents of a recorded run once more on what was recorded, and return what became different.

    Raises:
        UsageError: there is no such run, or it asked no model.
        ReplayDiverged: something is asked that was not asked then.
    """
    from schedagent import replaying

    with open_repository(settings) as repository, TemporaryDirectory(prefix="schedagent-replay-") as name:
        folder = Path(name)
        recording = replaying.Recording(repository, run_id)
        replay = Replay(existing_transcript(settings, run_id))
        rewind(Path(repository.place), folder / REPOSITORY, run_id)
        with PolicyRepository(folder / REPOSITORY) as copy:
            library = Library(load_library(), copy, folder / MADE_POLICIES, worth_trying(copy, run_id))
            nodes = replaying.replay_nodes(recording, replay, copy, library, reporter)
            approvals = replaying.RecordedApprovals(recording.decisions)
            with closing(nodes), replaying.up_to_the_end(recording, replay):
                walk(folder / "checkpoints.sqlite", nodes, approvals, run_id, reporter)
            return replaying.told(recording, replay, copy)


def existing_transcript(settings: Settings, run_id: str) -> Path:
    """Return the transcript of a run; raise UsageError if it has none."""
    path = transcript_path(settings.state_dir, run_id)
    if not path.exists():
        raise UsageError(f"run {run_id} has asked no model: there is no {path}")
    return path


def nodes_of(settings: Settings, repository: PolicyRepository, run_id: str, reporter: Reporter) -> RunNodes:
    """Build the nodes of a run that was begun before; raise UsageError if it was begun on other hardware."""
    run = repository.run(run_id)
    lab = open_lab(settings)
    if lab.hardware.key != run.hardware.key:
        raise UsageError(
            f"run {run_id} was measured on other hardware ({run.hardware}) than this ({lab.hardware})",
            "its samples and new ones cannot be compared: start a new run",
        )
    return build_nodes(settings, repository, lab, RunOptions.from_json(run.settings), reporter, run_id)


def build_nodes(
    settings: Settings,
    repository: PolicyRepository,
    lab: VmLab,
    options: RunOptions,
    reporter: Reporter,
    run_id: str = "",
) -> RunNodes:
    """Give the four nodes their collaborators.

    Args:
        run_id: the run that goes on; empty for a new one.
    """
    from schedagent.nodes import RunNodes

    library = open_run_library(settings, repository, run_id)
    models = functools.partial(open_models, settings, repository, library, reporter)
    return RunNodes(repository, lab, open_verifier(settings), library, reporter, options, models)


def open_models(
    settings: Settings, repository: PolicyRepository, library: Library, reporter: Reporter, run_id: str
) -> ModelAgents | None:
    """Give a run's agents their models and their transcript; None if the settings name no model.

    Raises:
        RepositoryError: the transcript cannot be used.
    """
    from agents.budget import Budget
    from agents.fences import Fence
    from agents.model import open_model
    from agents.session import ModelSession
    from agents.tools import Services, tools_for
    from agents.transcript import Transcript
    from agents.workshop import Workshop
    from schedagent.model_agents import ModelAgents

    if not settings.has_model:
        return None
    transcript = Transcript(transcript_path(settings.state_dir, run_id), run_id)
    budget = Budget.of(settings, spent=transcript.earlier)
    services = Services(repository, library, run_id)
    session = ModelSession(
        lambda role: open_model(settings, role, budget=budget, journal=transcript),
        Fence(transcript.mark),
        budget,
        transcript,
        reporter,
        lambda role: tools_for(role, services),
    )
    return ModelAgents(repository, session, transcript, Workshop(library, run_id), library)


def approvals_of(repository: PolicyRepository, run_id: str, nodes: RunNodes) -> Approvals:
    """Return the questions of a run."""
    from schedagent.approval import Approvals

    stages = RunOptions.from_json(repository.run(run_id).settings).approve
    return Approvals(repository, run_id, nodes.library, stages)


def drive(
    settings: Settings, nodes: RunNodes, repository: PolicyRepository, run_id: str, reporter: Reporter
) -> dict[str, Any]:
    """Take a run through the graph, from its last checkpoint if it has one, and return the report.

    If the run has to wait for an approval, the report says for what, under "waiting".

    Raises:
        UsageError: the run is finished, or another process works on it.
        RepositoryError: the repository or the checkpoint file cannot be used.
        KeyboardInterrupt: the user stopped it; the argument says how to go on.
    """
    from schedagent.model_report import model_use
    from schedagent.report import build_report

    checkpoints = settings.state_dir / "checkpoints.sqlite"
    with only_one(settings, run_id):
        repository.resume_run(run_id)
        with closing(nodes), ending(repository, run_id), sound(checkpoints):
            walk(checkpoints, nodes, approvals_of(repository, run_id, nodes), run_id, reporter)
    report = repository.run(run_id).report
    used = model_use(transcript_path(settings.state_dir, run_id))
    return dict(report) if report else build_report(repository, run_id, model=used, complete=False)


def walk(checkpoints: Path, nodes: RunNodes, approvals: Questions, run_id: str, reporter: Reporter) -> None:
    """Run the graph to its end, or to where it waits for an approval.

    A checkpoint follows each node; at the end the last one is not needed any more.
    """
    from langgraph.checkpoint.sqlite import SqliteSaver  # 0.7 s that only two commands need
    from langsmith import tracing_context

    from schedagent.graph import build_graph

    config: Any = {"configurable": {"thread_id": run_id}}
    with SqliteSaver.from_conn_string(str(checkpoints)) as saver, tracing_context(enabled=False), reporter.live():
        graph = build_graph(nodes, approvals, saver)
        begun = bool(graph.get_state(config).values)
        reporter.stage(f"run {run_id}" + (" goes on" if begun else ""))
        ended = graph.invoke(None if begun else first_state(run_id), config, durability="sync")
        if "__interrupt__" in ended:
            reporter.stage("waiting for an approval")
        else:
            saver.delete_thread(run_id)


@contextmanager
def ending(repository: PolicyRepository, run_id: str) -> Iterator[None]:
    """Store how a run ended that did not reach its end, and tell the user how to go on."""
    go_on = f"schedagent resume {run_id}"
    try:
        yield
    except SchedagentError as error:
        _store_ending(repository, run_id, RunStatus.FAILED)
        if not isinstance(error, UsageError):
            kept = f"nothing that was measured is lost; go on: {go_on}"
            error.hint = f"{error.hint}\n{kept}" if error.hint else kept
        raise
    except KeyboardInterrupt:
        _store_ending(repository, run_id, RunStatus.INTERRUPTED)
        raise KeyboardInterrupt(f"Nothing that was measured is lost. Go on: {go_on}") from None


def _store_ending(repository: PolicyRepository, run_id: str, status: RunStatus) -> None:
    with suppress(RepositoryError):  # a disk that is full: the user hears of the first error, which says the same
        repository.finish_run(run_id, status)


@contextmanager
def sound(checkpoints: Path) -> Iterator[None]:
    """Turn an unusable checkpoint file into an error that says how to go on: the repository holds every result."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        hint = "check the disk and the permissions of its folder"
        if getattr(error, "sqlite_errorname", "") in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            hint = f"delete it, no result is in it: rm {shlex.quote(str(checkpoints))}*"
        raise RepositoryError(f"the checkpoint file {checkpoints} cannot be used: {error}", hint) from error


@contextmanager
def only_one(settings: Settings, run_id: str) -> Iterator[None]:
    """Make sure no other process works on this run; raise UsageError if one does."""
    folder = settings.state_dir / "runs"
    folder.mkdir(exist_ok=True)
    with (folder / f"{run_id}.lock").open("a") as file:  # never removed: two could then lock two files of one name
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is working on run {run_id}", "wait for it, or stop it first") from None
        yield
