"""`schedagent doctor`: what is there, what is missing, what follows from it, and the command that fixes it."""

from __future__ import annotations

import math
import os
import re
import shutil
import statistics
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel_bpf.build import sandbox
from kernel_bpf.build.compile import TESTED_CLANG, find_clang
from kernel_bpf.build.target import find_bpftool
from schedagent.core.errors import SchedagentError, SetupError
from schedagent.core.installation import InstalledBy, this_installation
from schedagent.core.process import proc
from schedagent.core.settings import Settings, writable
from schedagent.setup.finding import Finding, Status
from schedagent.setup.host import host_kernel_findings
from schedagent.setup.packages import requirement
from verifier.microvm.kernels import default_kernel, find_kernels, host_kernel

if TYPE_CHECKING:
    from rich.text import Text

    from schedagent.core.trials.usage import MachineCosts
    from verifier.lab.vm import VmLab

MODEL_TIMEOUT_S = 3.0
LOW_DISK_MIB = 2048

_STATUS_WIDTH = len("warning") + 2
_COLOURS: dict[Status, str] = {"ok": "green", "info": "cyan", "warning": "yellow", "missing": "red"}
_EMULATION = "emulation"


def examine(settings: Settings) -> list[Finding]:
    """Examine everything the main job needs, most basic first. Makes the two folders if need be."""
    return [
        _folder("cache folder", settings.cache_dir, "SCHEDAGENT_CACHE"),
        _folder("state folder", settings.state_dir, "SCHEDAGENT_STATE"),
        _disk(settings),
        _virtual_environment(settings),
        *_programs(),
        _clang(),
        _libbpf(),
        _compiler_sandbox(),
        _kernel_image(settings),
        _own_kernel(),
        _kvm(settings),
        *host_kernel_findings(),
        _model(settings),
    ]


def is_ready(findings: Sequence[Finding]) -> bool:
    """Whether the main job can run: nothing that it needs is missing."""
    return all(finding.status != "missing" for finding in findings)


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings for machines."""
    return {"ready": is_ready(findings), "findings": [asdict(finding) for finding in findings]}


def restore_bench(lab: VmLab, restores: int = 20) -> Finding:
    """Restore machines of both profiles again and again; each time ends with an answer of the guest agent.

    A sealed machine is ready then; one with the host's files has mounted them too.

    Raises:
        VmLost: two machines in a row did not answer.
    """
    figures = []
    for hostfs, name in ((False, "sealed"), (True, "with the host's files")):
        lab.open(hostfs=hostfs).close()  # builds the snapshot if there is none, and reads it into the page cache
        with lab.measuring():
            seconds = sorted(_restore_s(lab, hostfs) for _ in range(restores))
        p90 = seconds[math.ceil(0.9 * restores) - 1]
        spread = f"p90 {p90:.3f} s, {seconds[0]:.3f} to {seconds[-1]:.3f} s"
        figures.append(f"{name}: median {statistics.median(seconds):.3f} s, {spread}")
    return Finding("VM restore", "info", "; ".join(figures) + f"; {restores} restores each")


def _restore_s(lab: VmLab, hostfs: bool) -> float:
    started = time.perf_counter()
    with lab.open(hostfs=hostfs):
        return time.perf_counter() - started


def emulation_bench(lab: VmLab) -> Finding:
    """Measure what separates the lab's machine from this one: work, and a task switch.

    Raises:
        VmLost: two machines in a row did not answer.
    """
    if lab.kvm:
        return Finding(_EMULATION, "ok", "none: under KVM the VM is as fast as this machine")
    costs = lab.costs()
    if costs is None:
        remedy = "run it again when this machine has less to do"
        return Finding(_EMULATION, "warning", "not measured: this machine is too busy", remedy=remedy)
    return emulation(costs)


def emulation(costs: MachineCosts, when: str = "") -> Finding:
    """Say in words what separates the lab's machine from this one.

    Args:
        costs: as measured.
        when: day on which they were measured; empty: just now.
    """
    lab_us, host_us = costs.lab_switch_ns / 1000, costs.host_switch_ns / 1000
    detail = (
        f"work takes {costs.kappa:.0f} times as long in the VM as on this machine; a task switch takes "
        f"{lab_us:.0f} us instead of {host_us:.1f} us, {lab_us / host_us:.0f} times as long"
    )
    measured = f"{detail} (measured {when})" if when else detail
    return Finding(
        _EMULATION, "info", measured, "fewer switches gain more in the VM than on hardware; reports allow for it"
    )


def render(findings: Sequence[Finding], width: int = 0) -> Text:
    """Return the findings as text: what was examined, its status and detail, and below that what follows.

    Args:
        width: columns of the terminal, to wrap sentences for; a path is never broken. 0 wraps nothing.
    """
    from rich.text import Text

    names = max(len(finding.name) for finding in findings) + 2
    indent = names + _STATUS_WIDTH
    text = Text()
    for finding in findings:
        sentences = (finding.detail, finding.consequence, finding.remedy)
        lines = [line for sentence in sentences for line in _wrapped(sentence, width - indent)]
        text.append(finding.name.ljust(names)).append(finding.status.ljust(_STATUS_WIDTH), _COLOURS[finding.status])
        text.append(f"\n{' ' * indent}".join(lines) + "\n")
    text.rstrip()
    return text


def _wrapped(text: str, width: int) -> list[str]:
    """Break a text between words; a command stays on one line, to be pasted."""
    if width < 1 or text.startswith(("run: ", "run as root: ")):
        return text.splitlines()
    return [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
    ]


def _folder(name: str, path: Path, variable: str) -> Finding:
    try:
        writable(path, variable)
    except SetupError as error:
        return Finding(name, "missing", error.message, "nothing can be kept", error.hint)
    return Finding(name, "ok", f"{path} ({_size_mib(path)} MiB)")


def _size_mib(folder: Path) -> int:
    total = 0
    for base, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(f"{base}/{file}").st_blocks * 512
            except FileNotFoundError:
                continue  # another run cleans up meanwhile
    return total >> 20


def _disk(settings: Settings) -> Finding:
    existing = next(path for path in (settings.cache_dir, *settings.cache_dir.parents) if path.exists())
    free_mib = shutil.disk_usage(existing).free >> 20
    if free_mib >= LOW_DISK_MIB:
        return Finding("disk", "ok", f"{free_mib} MiB free")
    consequence = f"below {LOW_DISK_MIB} MiB a kernel, a snapshot or an overlay may not fit"
    return Finding(
        "disk", "warning", f"{free_mib} MiB free", consequence, "set SCHEDAGENT_CACHE to a folder on a larger disk"
    )


def _virtual_environment(settings: Settings) -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if Path(sys.prefix).resolve() == settings.venv_dir.resolve() or (Path(sys.prefix) / "packages.stamp").is_file():
        return Finding("Python", "ok", f"{version} in {sys.prefix}")
    if (settings.venv_dir / "packages.stamp").is_file():
        return Finding("Python", "info", f"{version} in {sys.prefix}; set-up's own is {settings.venv_dir}")
    if this_installation().by is InstalledBy.PIP:  # pip and uv take what the wheel allows: no lock can be kept
        return Finding("Python", "ok", f"{version} in {sys.prefix}; libraries as the installer chose them")
    consequence = "the versions in use are not the locked ones"
    remedy = this_installation().how_to_restore_libraries()
    return Finding("Python", "warning", f"{version} in {sys.prefix}", consequence, remedy)


@dataclass(frozen=True)
class _Program:
    """A program, the Debian package with its oldest usable version, and what cannot be done without it."""

    name: str
    command: tuple[str, ...]
    package: str
    needed_for: str


_PROGRAMS = (
    _Program("QEMU", ("qemu-system-x86_64", "--version"), "qemu-system-x86", "policies cannot be tried"),
    _Program("bpftool", (find_bpftool(), "version"), "bpftool", "a kernel's types cannot be read"),
    _Program("setpriv", ("setpriv", "--version"), "util-linux", "QEMU cannot be started without privileges"),
)


def _programs() -> Iterator[Finding]:
    for program in _PROGRAMS:
        oldest = requirement(program.package)
        try:
            printed = proc.run(program.command, timeout_s=20).stdout.decode(errors="replace")
        except SetupError as error:
            remedy = this_installation().how_to_set_up()
            yield Finding(program.name, "missing", error.message, program.needed_for, remedy)
            continue
        match = re.search(r"[0-9]+(?:\.[0-9]+)+", printed)
        version = match.group() if match else "unknown version"
        where = f"{version} ({shutil.which(program.command[0])})"
        if oldest.met_by(version):
            yield Finding(program.name, "ok", where)
        else:
            remedy = this_installation().how_to_set_up()
            detail = f"{where}, needed: {oldest.minimum}"
            yield Finding(program.name, "missing", detail, program.needed_for, remedy)


def _clang() -> Finding:
    """The one that compiles: the tested release, or the newest that can do it."""
    try:
        path, printed = find_clang()
    except SetupError as error:
        return Finding("clang", "missing", error.message, "policies cannot be compiled", error.hint)
    version = re.search(r"version ([0-9.]+)", printed)
    where = f"{version[1] if version else 'unknown version'} ({path})"
    if version and int(version[1].partition(".")[0]) == TESTED_CLANG:
        return Finding("clang", "ok", where)
    return Finding("clang", "info", f"{where}; {TESTED_CLANG} is the release that was tested")


def _libbpf() -> Finding:
    from kernel_bpf.load.libbpf import libbpf

    try:
        library = libbpf()
    except SchedagentError as error:
        return Finding("libbpf", "missing", error.message, "policies cannot be loaded", error.hint)
    return Finding("libbpf", "ok", f"{library.libbpf_major_version()}.{library.libbpf_minor_version()}")


def _compiler_sandbox() -> Finding:
    """Proved by running a program in it: an installed bubblewrap may still not be allowed to do its work here."""
    name = "compiler sandbox"
    try:
        return Finding(name, "ok", sandbox.prove())
    except SetupError as error:
        return Finding(name, "missing", error.message, "nothing is compiled: no policy can be tried", error.hint)


def _kernel_image(settings: Settings) -> Finding:
    try:
        chosen = default_kernel(settings)
    except SchedagentError as error:
        return Finding("VM kernel", "missing", error.message, "there is no kernel to run policies on", error.hint)
    others = [image.release for image in find_kernels(settings) if image != chosen]
    also = f"; also: {', '.join(others)}" if others else ""
    return Finding("VM kernel", "ok", f"{chosen.release} ({chosen.vmlinuz}){also}")


def _own_kernel() -> Finding:
    """Whether the host's kernel could be the VM's: nobody needs it who has another."""
    host = host_kernel()
    if host.image:
        return Finding("host kernel in the VM", "ok", f"{host.release} ({host.image.vmlinuz})")
    return Finding("host kernel in the VM", "info", f"not {host.release}: {host.reason}", remedy=host.remedy)


def _kvm(settings: Settings) -> Finding:
    from verifier.microvm.kvm import kvm_usable

    consequence = "the micro-VM is emulated: everything works, but slower"
    try:
        probe = kvm_usable(settings, default_kernel(settings))
    except SchedagentError as error:
        return Finding("KVM", "warning", f"not tried: {error.message}", consequence, error.hint)
    if probe.works:
        return Finding("KVM", "ok", probe.reason)
    remedy = probe.remedy or "use a machine that offers hardware virtualisation"
    return Finding("KVM", "warning", probe.reason, consequence, remedy)


def _model(settings: Settings) -> Finding:
    name, without = "model", "planning goes by rules and by search, which is complete without a model"
    if not settings.model_base_url or not settings.model_name:
        return Finding(
            name,
            "info",
            "none configured",
            without,
            "to use one: set OPENAI_BASE_URL, SCHEDAGENT_MODEL and OPENAI_API_KEY",
        )
    address = f"{settings.model_base_url}/models"
    problem = _http_problem(address, settings.model_api_key)
    if not problem:
        return Finding(name, "ok", f"{settings.model_name} at {settings.model_base_url}")
    return Finding(name, "warning", f"GET {address}: {problem}", without, "check OPENAI_BASE_URL and OPENAI_API_KEY")


def _http_problem(address: str, api_key: str) -> str:
    """Return what went wrong with a GET, in one line; empty if it was answered with success."""
    import http.client
    import urllib.error
    import urllib.request

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=MODEL_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"HTTP status {error.code}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
