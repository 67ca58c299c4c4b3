"""The initramfs with the guest agent, and the snapshot of a machine that has booted it.

Both are cached by the digest of all that goes into them, so a changed kernel, agent, Python, libbpf or QEMU leads to a
new snapshot by itself. Building is safe with several processes at once; a damaged snapshot is noticed and rebuilt.
"""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import importlib.util
import json
import logging
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from schedagent.core.errors import SetupError, VmLost
from schedagent.core.installation import this_installation
from schedagent.core.process import proc
from schedagent.core.retention.folder import mark_used, trim
from schedagent.core.retention.limits import RETENTION
from schedagent.core.retention.lock import locked
from verifier.microvm import jobs
from verifier.microvm.kernels import KernelImage, config_text, module_closure, read_module
from verifier.microvm.machine import KERNEL_ARGUMENTS, SHAPED_CPU, Machine, MachineSpec
from verifier.microvm.topology import Topology

log = logging.getLogger(__name__)

GUEST_MODULES = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay")
FILES = ("initrd", "state")
ENTRY = re.compile("[0-9a-f]{24}")
"""Names of snapshots in their folder."""
ANSWER_TIMEOUT_S = 30.0
BLOCK_BYTES = 1 << 16

_PACKAGES_ROOT = Path(__file__).resolve().parents[2]
_LIST_FILES = """
import json
from verifier.guest import agent
agent.warm_up()
maps = [line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line]
modules = [module.__spec__.origin for module in sys.modules.values() if getattr(module, "__spec__", None)]
print(json.dumps(sorted({path for path in maps + modules if path and path.startswith("/")})))
"""
_INIT = """#!{python} -ISB
import sys
sys.path.insert(0, "/agent")
from verifier.guest.agent import main
main()
"""


@dataclass(frozen=True)
class Entry:
    """One initramfs entry: a directory (content None), a file, or a symbolic link (`link`)."""

    path: str
    mode: int
    content: bytes = b""


def newc(entries: Sequence[Entry]) -> bytes:
    """Pack entries as a cpio "newc" archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    blocks = []
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.lstrip("/").encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        blocks += [_padded(header + name), _padded(entry.content)]
    return b"".join(blocks)


def _padded(block: bytes) -> bytes:
    return block + bytes(-len(block) % 4)


def agent_python() -> str:
    """The interpreter that the agent runs in: this one, outside of any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def run_like_agent(program: str) -> subprocess.CompletedProcess[bytes]:
    """Run a Python program here as the agent runs there: its interpreter, its packages, nothing of the environment."""
    preamble = f"import sys\nsys.path.insert(0, {str(_PACKAGES_ROOT)!r})\n"
    return proc.run([agent_python(), "-ISB", "-c", preamble + program], timeout_s=60)


@functools.cache
def agent_entries() -> tuple[Entry, ...]:
    """Everything the guest agent needs: the files a Python that has imported it really uses, at their own paths.

    Raises:
        SetupError: the agent cannot be imported here, for example because libbpf is missing.
    """
    python = agent_python()
    listing = run_like_agent(_LIST_FILES)
    if listing.returncode != 0:
        raise SetupError(
            f"the guest agent cannot start here:\n{listing.stderr.decode()[-2000:]}",
            this_installation().how_to_set_up(),
        )
    entries = [Entry("/init", 0o100755, _INIT.format(python=python).encode())]
    for name in json.loads(listing.stdout):
        path = Path(name)
        if path.is_relative_to(_PACKAGES_ROOT):
            entries.append(Entry(f"/agent/{path.relative_to(_PACKAGES_ROOT)}", 0o100644, path.read_bytes()))
        else:
            entries.append(Entry(str(path.resolve()), 0o100755, path.read_bytes()))
            entries += library_links(path.resolve())
    entries += [
        Entry(link, 0o120777, bytes(Path(link).readlink())) for link in ("/lib", "/lib64") if Path(link).is_symlink()
    ]
    return with_directories(entries)


def library_links(library: Path) -> list[Entry]:
    """The symbolic links to a shared library beside it (or in /usr/lib64): the dynamic loader looks for those names."""
    if ".so" not in library.name:
        return []
    folders = [library.parent, *(folder for folder in [Path("/usr/lib64")] if folder.is_dir())]
    return [
        Entry(str(path), 0o120777, bytes(path.readlink()))
        for folder in folders
        for path in folder.iterdir()
        if ".so" in path.name and path.is_symlink() and path.resolve() == library
    ]


def with_directories(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Put every parent directory before what it holds, and drop repeated paths."""
    unique = {entry.path: entry for entry in entries}
    for directory in {str(parent) for path in unique for parent in Path(path).parents} - {"/"}:
        unique.setdefault(directory, Entry(directory, 0o40755))
    return tuple(sorted(unique.values(), key=lambda entry: entry.path))


@functools.cache
def initrd_entries(kernel: KernelImage) -> tuple[Entry, ...]:
    """What the initramfs for a kernel is made from: the agent, the modules for 9p and overlay in load order, and the
    kernel's configuration where libbpf looks for it (extern ... __kconfig)."""
    modules = [
        Entry(f"/modules/{number:02}-{path.name.partition('.')[0]}.ko", 0o100644, read_module(path))
        for number, path in enumerate(module_closure(kernel, GUEST_MODULES))
    ]
    text = gzip.compress(config_text(kernel.config).encode(), mtime=0)
    config = Entry(f"/boot/config-{kernel.release}", 0o100644, text)
    return with_directories([*agent_entries(), Entry("/modules", 0o40755), *modules, config])


def build_initrd(kernel: KernelImage) -> bytes:
    """The initramfs: `initrd_entries` and their byte code, uncompressed.

    The byte code halves the boot under emulation. It is no part of the snapshot's key, because its bytes may differ
    from one compilation to the next.
    """
    entries = initrd_entries(kernel)
    return newc(with_directories([*entries, *byte_code(entries)]))


def byte_code(entries: Sequence[Entry]) -> list[Entry]:
    """Compile every Python source to where the import system looks for it, valid whatever the source's date is."""
    compiled = []
    with tempfile.TemporaryDirectory(prefix="schedagent-") as folder:
        source, target = Path(folder) / "source.py", Path(folder) / "compiled"
        for entry in entries:
            if not entry.path.endswith(".py"):
                continue
            source.write_bytes(entry.content)
            unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(str(source), str(target), entry.path, doraise=True, invalidation_mode=unchecked)
            compiled.append(Entry(importlib.util.cache_from_source(entry.path), 0o100644, target.read_bytes()))
    return compiled


class SnapshotStore:
    """Snapshots under one folder, each in a folder named by its key, holding `initrd`, `state` and `manifest.json`.

    Args:
        folder: created on demand.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[Path] = set()

    def open(
        self,
        kernel: KernelImage,
        *,
        cpus: int,
        memory_mib: int,
        kvm: bool,
        hostfs: bool,
        topology: Topology | None = None,
    ) -> Machine:
        """Return a fresh machine that has answered, restored from its snapshot, which is built first if need be.

        A snapshot that cannot be restored is checked, rebuilt if it is damaged, and tried once more.

        Raises:
            SetupError: the folder cannot be written, or a tool is missing.
            VmLost: the machine could neither be restored nor booted.
        """
        key = snapshot_key(kernel, cpus=cpus, memory_mib=memory_mib, kvm=kvm, hostfs=hostfs, topology=topology)
        place = self.folder / key
        spec = MachineSpec(kernel.vmlinuz, place / "initrd", cpus, memory_mib, kvm, hostfs, topology=topology)
        self._ensure(place, spec, kernel)
        mark_used(place)
        try:
            return restored(spec, place / "state")
        except (VmLost, OSError) as error:
            log.warning("the VM snapshot %s could not be restored, checking it: %s", place, error)
        self._verified.discard(place)
        self._ensure(place, spec, kernel)
        try:
            return restored(spec, place / "state")
        except VmLost:
            self._verified.discard(place)
            (place / "manifest.json").unlink(missing_ok=True)  # whole, yet of no use: the next one rebuilds it
            raise

    def _ensure(self, place: Path, spec: MachineSpec, kernel: KernelImage) -> None:
        """Make sure, once in this process, that there is a sound snapshot."""
        if place in self._verified:
            return
        with self._locked(place.name):
            if not sound(place):
                self._build(place, spec, build_initrd(kernel))
                trim(self.folder, ENTRY, RETENTION["snapshots"], folders=True)
        self._verified.add(place)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the lock of one snapshot against other processes."""
        with ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.folder / f"{key}.lock", wait=True))
            except OSError as error:
                raise SetupError(
                    f"cannot write to the cache folder: {error}", "set SCHEDAGENT_CACHE to a folder of yours"
                ) from None
            yield

    def _build(self, place: Path, spec: MachineSpec, initrd: bytes) -> None:
        """Boot once and save: everything is written beside its final place and renamed at the end."""
        log.info("booting %s once to make a snapshot", spec.kernel.name)
        shutil.rmtree(place, ignore_errors=True)
        try:
            place.mkdir(mode=0o700)  # nobody else gets at the state, which QEMU as `nobody` has to open for writing
            spec.initrd.write_bytes(initrd)
            spec.initrd.chmod(0o644)  # QEMU may run as `nobody`
            state = place / "state"
            with state.open("wb") as file:
                os.fchmod(file.fileno(), 0o666)
                with Machine.boot(spec, snapshot=file) as machine:
                    machine.save(file)
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            manifest = {name: file_digest(place / name) for name in FILES}
            partial = place / "manifest.partial"
            partial.write_text(json.dumps({"digests": manifest, "spec": asdict(spec)}, default=str, indent=1))
            partial.rename(place / "manifest.json")
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise SetupError(
                f"cannot build the VM snapshot: {error}", f"needs about 300 MB free in {self.folder}"
            ) from None
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise


def restored(spec: MachineSpec, state: Path) -> Machine:
    """Return a machine that was restored and has answered; raise VmLost, or OSError if a file is missing."""
    machine = Machine.restore(spec, state)
    machine.call(jobs.Hello(time.time_ns()), ANSWER_TIMEOUT_S)
    return machine


@functools.cache
def snapshot_key(
    kernel: KernelImage, *, cpus: int, memory_mib: int, kvm: bool, hostfs: bool, topology: Topology | None = None
) -> str:
    """Name a snapshot by all that its state depends on."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise SetupError(
            "qemu-system-x86_64 is not installed", this_installation().how_to_install_program("qemu-system-x86_64")
        )
    status = Path(qemu).resolve().stat()
    contents = [(entry.path, entry.mode, hashlib.sha256(entry.content).hexdigest()) for entry in initrd_entries(kernel)]
    parts = [
        file_digest(kernel.vmlinuz), contents, KERNEL_ARGUMENTS, cpu_flags() if kvm else "",
        status.st_size, status.st_mtime_ns, cpus, memory_mib, kvm, hostfs,
        [SHAPED_CPU, *topology.qemu_arguments(memory_mib)] if topology else [],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def cpu_flags() -> str:
    """What the host's CPU can do: a machine saved under KVM sees the same."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), "")


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file's blocks that are not zero, and of where they are; a snapshot is mostly holes."""
    digest = hashlib.sha256()
    zeros = bytes(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while (position := next_data(file.fileno(), position, size)) < size:
            file.seek(position)
            block = file.read(BLOCK_BYTES)
            if block != zeros[: len(block)]:
                digest.update(b"%d:" % position + block)
            position += len(block)
    digest.update(b"%d" % size)
    return digest.hexdigest()


def next_data(file: int, position: int, size: int) -> int:
    """Return the next block at or behind `position` that is no hole in the file, `size` if there is none."""
    try:
        return max(position, os.lseek(file, position, os.SEEK_DATA) // BLOCK_BYTES * BLOCK_BYTES)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def sound(place: Path) -> bool:
    """Whether a snapshot is complete and undamaged."""
    try:
        digests = json.loads((place / "manifest.json").read_text())["digests"]
        damaged = [name for name in FILES if file_digest(place / name) != digests[name]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if damaged:
        log.warning("the VM snapshot %s is damaged (%s): rebuilding it", place, ", ".join(damaged))
    return not damaged
