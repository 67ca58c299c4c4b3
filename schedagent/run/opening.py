"""The composition root: opens, from the settings alone, everything that a run works with.

The repository and the library, the lab, the verifier, and the nodes of a run with its models and approvals. Whoever
puts another lab in the place of the micro-VM, as tests do, does it here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agents.llm.transcript import transcript_path
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library
from kernel_bpf.policies.programs import InstalledPrograms, known_programs
from repo_store.store import PolicyRepository
from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import SetupError, UsageError
from schedagent.core.policies.policy import PolicyInfo
from schedagent.core.settings import REPOSITORY, Settings, secret_places, workload_environment, writable
from schedagent.core.trusted import load_trusted
from schedagent.run.library import Library, worth_trying
from schedagent.run.options import HOST, VM, RunOptions
from schedagent.run.progress import Reporter
from schedagent.run.schedulers import SourceVerifier
from verifier.lab.vm import VmLab
from verifier.microvm.image import SnapshotStore
from verifier.microvm.kernels import KernelImage, default_kernel, find_kernels
from verifier.microvm.kvm import kvm_usable
from verifier.pipeline import KernelBench, Verifier
from verifier.report_cache import ReportCache
from verifier.service.client import RemoteVerifier
from verifier.signer import Signer

if TYPE_CHECKING:
    from schedagent.approval.approvals import Approvals
    from schedagent.experiment.service import Service
    from schedagent.hostlab.lab import HostLab
    from schedagent.run.model_agents import ModelAgents
    from schedagent.run.nodes import RunNodes

DERIVED_POLICIES = "policies"
"""In the state folder: the files of derived policies."""

MEMORY_MIB_PER_CPU = 1024
LEAST_MEMORY_MIB = 2048
"""That the lab chooses."""
MEMORY_STEP_MIB = 256
"""Half of the host's memory is rounded down to it: what a kernel keeps for itself varies with each of its releases."""
LEAST_MIB = 512
"""That a run may ask for."""
MOST_CPUS = 16


def open_repository(settings: Settings) -> PolicyRepository:
    """Open the policy repository in the state folder; what a new run may plan with is mirrored there for searching."""
    repository = PolicyRepository(writable(settings.state_dir, "SCHEDAGENT_STATE") / REPOSITORY)
    try:
        repository.sync_policies([*open_run_library(settings, repository).values(), *known_programs().values()])
    except BaseException:
        repository.close()
        raise
    return repository


def open_run_library(
    settings: Settings, repository: PolicyRepository, run_id: str = "", *, also: Collection[str] = ()
) -> Library:
    """Open the library of a run: the bundled policies, those that have won somewhere, and its own.

    Args:
        run_id: the run; empty for one that has not begun.
        also: names of further policies that it is to have.
    """
    wanted = worth_trying(repository, run_id, also)
    return Library(load_library(), repository, settings.state_dir / DERIVED_POLICIES, wanted)


def whole_library(settings: Settings) -> dict[str, PolicyInfo]:
    """Return all policies, bundled and derived; does not create a repository."""
    if not (settings.state_dir / REPOSITORY).is_file():
        return dict(load_library())
    with PolicyRepository(settings.state_dir / REPOSITORY) as repository:
        return dict(Library(load_library(), repository, settings.state_dir / DERIVED_POLICIES))


def open_lab(settings: Settings, kernel: KernelImage | None = None) -> VmLab:
    """Build the micro-VM lab: the machine has the host's CPUs (at most 16) and at most half of its memory.

    Args:
        kernel: what it runs; None for the kernel of the settings, or the newest.
    """
    cache = writable(settings.cache_dir)
    kernel = kernel or default_kernel(settings)
    cpus = settings.vm_cpus or min(len(os.sched_getaffinity(0)), MOST_CPUS)
    half_mib = host_memory_mib() // 2 // MEMORY_STEP_MIB * MEMORY_STEP_MIB
    memory_mib = settings.vm_memory_mib or min(max(LEAST_MEMORY_MIB, cpus * MEMORY_MIB_PER_CPU), half_mib)
    return VmLab(
        kernel,
        SnapshotStore(cache / "snapshots"),
        cpus=cpus,
        memory_mib=memory_mib,
        kvm=kvm_usable(settings, kernel).works,
        environment=workload_environment(),
        hidden=secret_places(settings),
    )


def sized(settings: Settings, options: RunOptions) -> Settings:
    """Return the settings with the size of the micro-VM that a run asks for.

    Candidates are verified in machines of the usual size: what a policy may do does not depend on one run.

    Raises:
        UsageError: this host has less.
    """
    host_cpus, host_mib = len(os.sched_getaffinity(0)), host_memory_mib()
    if options.cpus and options.cpus > host_cpus:
        raise UsageError(f"--cpus {options.cpus} is more than this host has", f"accepted: 1 to {host_cpus}")
    if options.memory_mib and not LEAST_MIB <= options.memory_mib <= host_mib:
        hint = f"accepted: {LEAST_MIB}M to {host_mib}M, which is all that this host has"
        raise UsageError(f"--memory {options.memory_mib}M cannot be had", hint)
    return dataclasses.replace(
        settings,
        vm_cpus=options.cpus or settings.vm_cpus,
        vm_memory_mib=options.memory_mib or settings.vm_memory_mib,
    )


def placed(settings: Settings, options: RunOptions) -> RunOptions:
    """Return the options with the place that they mean: of AUTO, this machine if something can be measured on it.

    Raises:
        UsageError: nothing can be measured on this machine, or not what was named, and that was asked for.
        SetupError: the same of an experiment.
    """
    if options.on == VM:
        return options
    reason = why_vm(settings, options)
    if reason and options.experiment:
        raise SetupError(f"no experiment is possible here: {reason}", "what it needs: schedagent help experiments")
    if reason and options.on == HOST:
        raise UsageError(f"--on host: {reason}", "without --on it is measured in the micro-VM")
    return dataclasses.replace(options, on=VM if reason else HOST)


def why_vm(settings: Settings, options: RunOptions) -> str:
    """Return why a run cannot measure on this machine; empty if it can."""
    from schedagent.hostlab.lab import why_not_here

    programs = [each.program.command for each in options.schedulers if each.program]
    if programs:
        return f"{', '.join(programs)} would load its policy itself, as root, which is done in the micro-VM only"
    return why_not_here(DaemonClient(), default_kernel(settings).release)


def open_place(settings: Settings, options: RunOptions) -> VmLab | HostLab:
    """Build the lab in which a run measures.

    Raises:
        UsageError: this host has less than the options ask for.
    """
    from schedagent.hostlab.lab import HostLab

    vm = open_lab(sized(settings, options))
    return HostLab(vm, DaemonClient()) if options.on == HOST else vm


def host_memory_mib() -> int:
    """Return the memory of this host in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def open_bench(settings: Settings, kernel: KernelImage) -> KernelBench:
    """Build the lab of one kernel and look up its types."""
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    return KernelBench(open_lab(settings, kernel), target)


def open_verifier(settings: Settings) -> Verifier | RemoteVerifier:
    """Return the verifier service that the settings name, or that is installed; else a verifier in this process."""
    if service := settings.verifier_service:
        return open_remote_verifier(service, settings, default_kernel(settings).release)
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
        sign: with the signing key of the state folder; else no key is needed, and no token is issued.
    """
    cache = writable(settings.cache_dir)
    first = default_kernel(settings)
    others = [image for image in find_kernels(settings) if image.release != first.release] if all_kernels else []
    benches = tuple(open_bench(settings, image) for image in (first, *others))
    if not sign:
        return Verifier(benches, cache)
    signer = open_signer(settings)
    return Verifier(benches, cache, signer, report_cache=ReportCache(cache / "reports", signer.vouches))


def open_signer(settings: Settings, *, create: bool = True) -> Signer:
    """Open the verifier's signing key in the state folder, which is made if there is none."""
    if create:
        writable(settings.state_dir, "SCHEDAGENT_STATE")
    return Signer(settings.keys_dir / "signing.key", create=create)


def reopen_nodes(settings: Settings, repository: PolicyRepository, run_id: str, reporter: Reporter) -> RunNodes:
    """Build the nodes of a stored run; raise UsageError if it was started on other hardware."""
    run = repository.run(run_id)
    options = RunOptions.from_json(run.settings)
    lab = open_place(settings, options)
    if lab.hardware.key != run.hardware.key:
        raise UsageError(
            f"run {run_id} was measured on other hardware ({run.hardware}) than this ({lab.hardware})",
            "its samples and new ones cannot be compared: start a new run",
        )
    return open_nodes(settings, repository, lab, options, reporter, run_id)


def open_nodes(
    settings: Settings,
    repository: PolicyRepository,
    lab: VmLab | HostLab,
    options: RunOptions,
    reporter: Reporter,
    run_id: str = "",
) -> RunNodes:
    """Build the nodes of a run, with all that they work with.

    Args:
        run_id: the run, if it is stored already; else empty.
    """
    from schedagent.run.nodes import RunNodes

    library = open_run_library(settings, repository, run_id, also=options.wanted_policies)
    models = functools.partial(open_models, settings, repository, library, reporter)
    verifier = with_headers(open_verifier(settings), options.include)
    programs = None if options.on == HOST else installed_programs()
    service = open_service(lab, options, reporter) if options.experiment else None
    return RunNodes(repository, lab, verifier, library, reporter, options, models, programs=programs, service=service)


def open_service(lab: VmLab | HostLab, options: RunOptions, reporter: Reporter) -> Service:
    """Build what measures an experiment."""
    from schedagent.experiment.service import Service
    from schedagent.experiment.spec import Experiment

    assert options.experiment is not None, "who calls has asked"
    experiment = Experiment.from_json(options.experiment)
    return Service(experiment, DaemonClient(), lab.measuring, lab.environment, reporter)


def installed_programs() -> InstalledPrograms:
    """Return the schedulers with a loader of their own that this host has."""
    return InstalledPrograms.of_path(workload_environment().get("PATH", ""))


AnyVerifier = Verifier | RemoteVerifier | SourceVerifier


def with_headers(verifier: Verifier | RemoteVerifier, include: Sequence[str]) -> AnyVerifier:
    """Return the verifier of a run: sources that were brought see the folders that the user named, others do not."""
    if not include:
        return verifier
    return SourceVerifier(verifier, dataclasses.replace(verifier, include_dirs=tuple(map(Path, include))))


def open_models(
    settings: Settings, repository: PolicyRepository, library: Library, reporter: Reporter, run_id: str
) -> ModelAgents | None:
    """Return the agents of a run that ask models, with its transcript; None if the settings name no model.

    Raises:
        RepositoryError: the transcript cannot be used.
    """
    from agents.llm.budget import Budget
    from agents.llm.fences import Fence
    from agents.llm.model import open_model
    from agents.llm.transcript import Transcript
    from agents.planner.builder import PolicyBuilder
    from agents.session import ModelSession
    from agents.tools.catalog import Services, tools_for
    from schedagent.run.model_agents import ModelAgents

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
    return ModelAgents(repository, session, transcript, PolicyBuilder(library, run_id), library)


def approvals_of(repository: PolicyRepository, run_id: str, nodes: RunNodes) -> Approvals:
    """Return the approvals that a run needs."""
    from schedagent.approval.approvals import Approvals

    stages = RunOptions.from_json(repository.run(run_id).settings).approve
    return Approvals(repository, run_id, nodes.library, stages)
