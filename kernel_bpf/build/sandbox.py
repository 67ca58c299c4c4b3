"""Where clang and bpftool meet what nobody has looked at yet: a place without network, home, secrets or rights.

    run(clang, ["-c", "policy.bpf.c", ...], reads={"/src/policy.bpf.c": copy}, writes={"/src/policy.o": output})

bubblewrap gives the program namespaces of its own: a root folder that holds the program, its libraries and what `reads`
names, all read-only, and nothing else (no /proc, no /dev, no /tmp); no network; processes, users and host name of its
own; no capabilities and no way to new ones; no system calls that a compiler has no use for (seccomp.py); no environment
but the path of its libraries; and death with us. What it prints goes into files, so the limit on file sizes
bounds that too. Without a working bubblewrap nothing is run at all.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.build.seccomp import filter_program
from schedagent.core.errors import SetupError
from schedagent.core.installation import this_installation
from schedagent.core.process import proc

NOBODY = "65534"
WORKPLACE = "/src"
"""The folder the program starts in."""

_ALLOW = (
    "allow user namespaces: sysctl user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns; "
    "in a container, start it with --security-opt seccomp=unconfined --cap-add SYS_ADMIN or use a virtual machine"
)
_LIBRARIES = "/libraries"
_LIBRARY = re.compile(r"^\s*(?:(\S+) => )?(/.+) \(0x[0-9a-f]+\)$")
_SIGNAL_STATUS = 128
_NO_MEMORY = re.compile(rb"LLVM ERROR: out of memory|std::bad_alloc|cannot allocate memory", re.IGNORECASE)


@dataclass(frozen=True)
class SandboxLimits:
    """What one run may use.

    Args:
        cpu_s: CPU time.
        wall_s: time on the clock; a machine that stands still for so long is no fault of the source.
        memory_bytes: address space.
        output_bytes: each file it writes, and what it prints.
    """

    cpu_s: int = 20
    wall_s: float = 300.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 16 << 20


@dataclass(frozen=True)
class Ran:
    """How a run ended.

    Args:
        status: exit status; 128 + signal number if a signal ended it.
        stdout, stderr: what it printed.
        stopped: the limit that ended it, in words; empty if none did.
    """

    status: int
    stdout: bytes
    stderr: bytes
    stopped: str = ""

    @property
    def crashed(self) -> bool:
        """Whether a signal ended it that is no limit: it overflowed its stack, or met a bug of its own."""
        return self.status > _SIGNAL_STATUS and not self.stopped


def run(
    program: Path,
    arguments: Sequence[str],
    *,
    reads: Mapping[str, Path],
    writes: Mapping[str, Path] | None = None,
    limits: SandboxLimits | None = None,
) -> Ran:
    """Run a program of this machine where it can reach nothing but what is named here.

    Args:
        reads: path inside -> file or folder it shows, read-only; links in a folder that lead out of it lead nowhere.
        writes: path inside -> existing file that it may write.

    Raises:
        SetupError: there is no working sandbox here, or the program did not end in time.
    """
    if not program.is_absolute():
        raise SetupError(f"{program} is not installed", this_installation().how_to_install_program(str(program)))
    allowed = limits or SandboxLimits()
    with ExitStack() as opened:
        stdout, stderr, report, rules = (opened.enter_context(tempfile.TemporaryFile()).fileno() for _ in range(4))
        os.pwrite(rules, filter_program(), 0)
        walls = _walls({**_program_files(program), **reads}, writes or {}, report, rules)
        ended = proc.run(
            [*_limited(allowed), *walls, "--", program, *arguments],
            timeout_s=allowed.wall_s,
            output=(stdout, stderr),
            pass_fds=[report, rules],
        )
        printed, errors, reported = map(_content, (stdout, stderr, report))
    if b'"exit-code"' not in reported:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or [f"status {ended.returncode}"]
        raise SetupError(f"the compiler sandbox cannot be set up: {last[0]}", _ALLOW)
    return Ran(ended.returncode, printed, errors, _limit_hit(ended.returncode, errors, allowed))


def prove() -> str:
    """Run a program in the sandbox, and return what the sandbox is.

    Raises:
        SetupError: there is no working sandbox here: nothing of unknown origin will be compiled.
    """
    ran = run(Path("/bin/true"), [], reads={})
    if ran.status != 0:
        raise SetupError(f"/bin/true ended with status {ran.status} in the compiler sandbox", _ALLOW)
    version = proc.run([_bubblewrap(), "--version"], timeout_s=20).stdout.decode(errors="replace").strip()
    return f"{version}: own namespaces, no network, no files but the toolchain"


def _limited(limits: SandboxLimits) -> list[str]:
    return [
        "prlimit",
        f"--as={limits.memory_bytes}",
        f"--cpu={limits.cpu_s}",
        f"--fsize={limits.output_bytes}",
        "--core=0",
        "--nofile=256",
        "--",
    ]


def _walls(reads: Mapping[str, Path], writes: Mapping[str, Path], status_fd: int, rules_fd: int) -> list[str]:
    """bubblewrap's command line; mounts are made in the order given, so a folder comes before what lies in it."""
    command = [_bubblewrap(), "--unshare-all", "--unshare-user", "--disable-userns", "--uid", NOBODY, "--gid", NOBODY]
    command += ["--cap-drop", "ALL", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
    command += ["--clearenv", "--setenv", "LD_LIBRARY_PATH", _LIBRARIES, "--json-status-fd", str(status_fd)]
    command += ["--seccomp", str(rules_fd), "--dir", WORKPLACE]
    for place in sorted(reads):
        command += ["--ro-bind", str(reads[place]), place]
    for place in sorted(writes):
        command += ["--bind", str(writes[place]), place]
    return [*command, "--remount-ro", "/", "--chdir", WORKPLACE]


@functools.cache
def _bubblewrap() -> str:
    path = shutil.which("bwrap")
    if path is None:
        raise SetupError(
            "bubblewrap is not installed, and without it nothing of unknown origin is compiled",
            this_installation().how_to_set_up(),
        )
    return path


@functools.cache
def _program_files(program: Path) -> dict[str, Path]:
    """The program, the dynamic linker at its fixed path, and the libraries by name in one folder.

    One folder, because without /proc the linker cannot tell where $ORIGIN is.
    """
    files = {str(program): program}
    listed = proc.run(["ldd", program], timeout_s=30)  # of a static program: "not a dynamic executable"
    for line in listed.stdout.decode(errors="replace").splitlines():
        if match := _LIBRARY.match(line):
            name, path = match.groups()
            files[f"{_LIBRARIES}/{name}" if name else path] = Path(path)
    return files


def _content(descriptor: int) -> bytes:
    """Return a temporary file from its beginning; its size was limited when it was written."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def _limit_hit(status: int, stderr: bytes, limits: SandboxLimits) -> str:
    ended_by = status - _SIGNAL_STATUS
    if ended_by in (signal.SIGXCPU, signal.SIGKILL):
        return f"more than {limits.cpu_s} s of CPU time"
    if ended_by == signal.SIGXFSZ:
        return f"more than {limits.output_bytes >> 20} MiB of output"
    if status != 0 and _NO_MEMORY.search(stderr):
        return f"more than {limits.memory_bytes >> 20} MiB of memory"
    return ""
