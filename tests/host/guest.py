"""The machine of the host test: a Debian that has booted with real systemd, and runs commands for us."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from verifier.microvm import image, jobs
from verifier.microvm.image import Entry, byte_code, newc, with_directories
from verifier.microvm.kernels import KernelImage, module_closure, read_module
from verifier.microvm.machine import KERNEL_ARGUMENTS, Machine, MachineSpec

HERE = Path(__file__).parent
MODULES = ("virtio_blk", "ext4")
BOOT_LIMIT_S = 240.0
MEMORY_MIB = 2048
SHOWN_LINES = 14
"""Of a command's output, in the transcript."""


@dataclass(frozen=True)
class RunCommand(jobs.Message):
    """For tests/host/guest_agent.py."""

    command: str
    timeout_s: float


class CommandFailed(AssertionError):
    """A command in the guest did not end with status 0."""


class Guest:
    """Runs commands as root in the guest, and tells a transcript what it did.

    Args:
        tell: takes each line of the transcript.
    """

    def __init__(self, machine: Machine, tell: Callable[[str], None]) -> None:
        self._machine, self._tell = machine, tell

    def run(
        self, command: str, *, timeout_s: float = 60.0, status: int | None = 0, quiet: bool = False, whole: bool = False
    ) -> str:
        """Run a shell command and return what it printed.

        Args:
            status: exit status that it must have; None for any.
            quiet: leave it out of the transcript.
            whole: tell all of its output.

        Raises:
            CommandFailed: it ended otherwise.
            VmLost: the machine did not answer; the error shows its console's end.
        """
        answer = self._machine.call(RunCommand(command, timeout_s), timeout_s + 60)
        output = answer["output"].rstrip()
        failed = status is not None and answer["status"] != status
        if failed or not quiet:
            first, *more = command.splitlines()
            self._tell(f"# {first}")
            for line in more:
                self._tell(f"> {line}")
            lines = output.splitlines()
            shown = lines if failed or whole else lines[:SHOWN_LINES]
            for line in shown:
                self._tell(f"  {line}")
            if len(lines) > len(shown):
                self._tell(f"  ... {len(lines) - len(shown)} lines more")
        if failed:
            raise CommandFailed(f"status {answer['status']} of: {command}\n{output}")
        return output

    def ask(self, command: str, **options: object) -> str:
        """Run a command that only looks, without telling."""
        return self.run(command, quiet=True, **options)

    def until(self, command: str, limit_s: float, *, every_s: float = 0.2) -> float:
        """Wait, in the guest, until a command ends with status 0; return how many seconds of its time that took."""
        loop = f"begun=$(date +%s%N); until {command}; do sleep {every_s}; done; echo $(( $(date +%s%N) - begun ))"
        output = self.run(f"exec 2>/dev/null; {loop}", timeout_s=limit_s, quiet=True, status=None)
        words = output.split()
        if not words or not words[-1].isdigit():
            raise CommandFailed(f"not within {limit_s:g} s: {command}")
        return int(words[-1]) / 1e9


def boot(kernel: KernelImage, disks: Sequence[Path], folder: Path) -> Machine:
    """Boot the first disk.

    Args:
        folder: where the initramfs may be written.
    """
    initrd = folder / "initrd"
    initrd.write_bytes(newc(_entries(kernel)))
    initrd.chmod(0o644)
    arguments = f"{KERNEL_ARGUMENTS} systemd.show_status=yes systemd.firstboot=no"
    spec = MachineSpec(
        kernel.vmlinuz, initrd, cpus=2, memory_mib=MEMORY_MIB, kvm=False, hostfs=False,
        disks=tuple(disks), arguments=arguments,
    )  # fmt: skip
    return Machine.boot(spec, timeout_s=BOOT_LIMIT_S)


def _entries(kernel: KernelImage) -> Sequence[Entry]:
    """The micro-VM's initramfs with another init: Python and what the agents need are in it already."""
    kept = [entry for entry in image.agent_entries() if entry.path != "/init"]
    python = next(entry for entry in image.agent_entries() if entry.path == "/init").content.split(b"\n", 1)[0]
    init = python + b'\nimport sys\nsys.path.insert(0, "/agent")\nfrom guest_init import main\nmain()\n'
    ours = [
        Entry(f"/agent/{name}", 0o100644, (HERE / name).read_bytes()) for name in ("guest_init.py", "guest_agent.py")
    ]
    modules = [
        Entry(f"/modules/{number:02}-{path.name.partition('.')[0]}.ko", 0o100644, read_module(path))
        for number, path in enumerate(module_closure(kernel, MODULES))
    ]
    entries = [*kept, *ours, Entry("/init", 0o100755, init), Entry("/modules", 0o40755), *modules]
    return with_directories([*entries, *byte_code(entries)])
