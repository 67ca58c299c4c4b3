"""The kernel a policy is compiled for: its types, taken from its own BTF and cached by build id.

    prepare_target(vmlinuz)  ->  <cache>/btf/<build id>/{vmlinux, vmlinux.h, features.txt, manifest.json}

A target folder is filled beside its final place and renamed into it, under a lock; every use checks it against its
manifest, and a damaged one is built again.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import lzma
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.load.btf import Btf, BtfKind
from schedagent.core.errors import BpfError, SetupError
from schedagent.core.process import proc
from schedagent.core.retention.folder import mark_used, trim
from schedagent.core.retention.limits import RETENTION

log = logging.getLogger(__name__)

ELF_MAGIC = b"\x7fELF"

ENTRY, MEMO = re.compile("[0-9a-f]{16,64}"), re.compile("[0-9a-f]{24}")
"""Names of target folders, and of what remembers an image, in the folder `images` beside them."""
_VMLINUX = "vmlinux"
_HEADER = "vmlinux.h"
_FEATURES = "features.txt"
_MANIFEST = "manifest.json"
_BPFTOOL_TIMEOUT_S = 120
_ENUMERATOR = re.compile(r"^\t(SCX_\w+) = (-?\d+)", re.MULTILINE)
"""As bpftool writes them: one per line, in decimal."""

_SYSTEM_FOLDERS = "/usr/sbin:/sbin:/usr/local/sbin"
"""Where bpftool lives on Debian; not in the search path of an ordinary user."""


@dataclass(frozen=True)
class KernelTarget:
    """A kernel that policies are compiled against.

    Args:
        release: what uname -r prints under it.
        btf_build_id: hex GNU build id of its vmlinux.
        vmlinux: the uncompressed ELF, with .BTF.
        header_dir: folder that holds its vmlinux.h.
    """

    release: str
    btf_build_id: str
    vmlinux: Path
    header_dir: Path


def prepare_target(vmlinuz: Path, release: str, cache_dir: Path) -> KernelTarget:
    """Return the target for a kernel image, from the cache if it is there and sound.

    Args:
        vmlinuz: a bzImage, or an uncompressed vmlinux.
        cache_dir: everything lands in its subfolder btf.

    Raises:
        SetupError: the image cannot be read or holds no BTF, bpftool is missing, or the cache cannot be written.
    """
    root = cache_dir / "btf"
    try:
        folder = _cached(root, vmlinuz)
        if folder is None:
            root.mkdir(parents=True, exist_ok=True)
            with _locked(root / ".lock"):
                folder = _cached(root, vmlinuz) or _build(root, vmlinuz)
    except OSError as error:
        raise SetupError(
            f"cannot prepare the types of kernel {release}: {error}", f"needs about 80 MB, writable, in {cache_dir}"
        ) from None
    return KernelTarget(release, folder.name, folder / _VMLINUX, folder)


def features(target: KernelTarget) -> frozenset[str]:
    """Return what this kernel's sched_ext has: probe this, never the version.

    Holds the kfuncs (scx_bpf_dsq_insert), the struct members (sched_ext_ops.cgroup_set_bandwidth), the names of
    sched_ext's own structs (scx_bpf_select_cpu_and_args) and the enum constants (SCX_OPS_SWITCH_PARTIAL).
    """
    path = target.header_dir / _FEATURES
    try:
        return frozenset(path.read_text().split())
    except OSError as error:
        raise SetupError(
            f"cannot read the features of kernel {target.release}: {error}", "run it again, that reads them again"
        ) from None


@functools.cache
def enum_values(target: KernelTarget) -> Mapping[str, int]:
    """Return the numbers behind sched_ext's constants in this kernel, by name: {"SCX_ENQ_HEAD": 65536, ...}.

    They differ from kernel to kernel, and an object need not carry those that it uses.

    Raises:
        SetupError: its vmlinux.h cannot be read.
    """
    path = target.header_dir / _HEADER
    try:
        return {name: int(value) for name, value in _ENUMERATOR.findall(path.read_text())}
    except OSError as error:
        raise SetupError(
            f"cannot read the types of kernel {target.release}: {error}", "run it again, that reads them again"
        ) from None


def find_bpftool() -> str:
    """Return the path of bpftool, or its bare name if it is not installed: running that reports what to do."""
    return shutil.which("bpftool") or shutil.which("bpftool", path=_SYSTEM_FOLDERS) or "bpftool"


def extract_elf(image: bytes) -> bytes:
    """Return the vmlinux inside a kernel image.

    The place of the payload in a bzImage is in its setup header (Documentation/arch/x86/boot.rst), and the
    payload's last four bytes hold its uncompressed length (arch/x86/boot/compressed/Makefile).

    Raises:
        SetupError: neither a bzImage nor an ELF file, cut short, or packed in a way that is not known.
    """
    if image.startswith(ELF_MAGIC):
        return image
    if image[0x202:0x206] != b"HdrS":
        raise SetupError(
            f"not a kernel image: starts with {image[:4].hex(' ') or 'nothing'}", "give an x86 vmlinuz or a vmlinux"
        )
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if length < 8 or len(payload) < length:
        raise SetupError(f"the kernel image is cut short: {len(payload)} of {length} bytes of its payload are there")
    elf = _decompress(payload)
    (expected,) = struct.unpack("<I", payload[-4:])
    if len(elf) != expected or not elf.startswith(ELF_MAGIC):
        raise SetupError(f"the kernel image is damaged: unpacks to {len(elf)} bytes instead of {expected}")
    return elf


def _decompress(payload: bytes) -> bytes:
    """Unpack a payload by its magic number, ignoring what follows the compressed stream."""
    from zstandard import ZstdDecompressor, ZstdError

    packers: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
        b"\x28\xb5\x2f\xfd": ("zstd", lambda data: ZstdDecompressor().decompressobj().decompress(data)),
        b"\x1f\x8b": ("gzip", lambda data: zlib.decompressobj(wbits=31).decompress(data)),
        b"\xfd7zXZ\0": ("xz", lambda data: lzma.LZMADecompressor().decompress(data)),
        b"\x5d\0\0": ("lzma", lambda data: lzma.LZMADecompressor().decompress(data)),
    }
    for magic, (name, unpack) in packers.items():
        if payload.startswith(magic):
            try:
                return unpack(payload)
            except (ZstdError, zlib.error, lzma.LZMAError) as error:
                raise SetupError(f"the kernel image is damaged: {name}: {error}") from None
    known = ", ".join(name for name, _unpack in packers.values())
    raise SetupError(f"the kernel's payload starts with {payload[:6].hex(' ')}", f"known are: {known}")


def read_build_id(vmlinux: Path) -> str:
    """Return the hex GNU build id of an ELF file; raise SetupError if it has none."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import NoteSection

    with vmlinux.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if not isinstance(section, NoteSection):
                continue
            for note in section.iter_notes():
                if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_BUILD_ID":
                    return str(note["n_desc"])
    raise SetupError(f"{vmlinux} has no GNU build id", "use a kernel built with --build-id, as distributions do")


def _build(root: Path, vmlinuz: Path) -> Path:
    """Make the target folder of a kernel image; the caller holds the lock."""
    log.info("reading the types of %s", vmlinuz)
    for leftover in root.glob(".partial-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
    try:
        vmlinux = partial / _VMLINUX
        vmlinux.write_bytes(extract_elf(vmlinuz.read_bytes()))
        build_id = read_build_id(vmlinux)
        (partial / _HEADER).write_bytes(_dump_header(vmlinux))
        (partial / _FEATURES).write_text("\n".join(sorted(_probe(vmlinux))) + "\n")
        digests = {name: _digest(partial / name) for name in (_VMLINUX, _HEADER, _FEATURES)}
        (partial / _MANIFEST).write_text(json.dumps(digests, indent=1))
        partial.chmod(0o755)
        place = root / build_id
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    memo = memo_of(root, vmlinuz)
    memo.parent.mkdir(exist_ok=True)
    memo.write_text(build_id)
    trim(root, ENTRY, RETENTION["types"], folders=True)
    return place


def _cached(root: Path, vmlinuz: Path) -> Path | None:
    """Return the folder of a kernel image met before, None if it was not or the folder is damaged.

    Raises:
        OSError: the image is not there.
    """
    try:
        build_id = memo_of(root, vmlinuz).read_text()
    except FileNotFoundError:
        vmlinuz.stat()
        return None
    place = root / build_id
    if not build_id or not _sound(place):
        return None
    mark_used(place, memo_of(root, vmlinuz))
    return place


def memo_of(root: Path, vmlinuz: Path) -> Path:
    """Return the file that remembers the build id of this very image, so that it need not be unpacked again.

    It is as old as the last use of the image.
    """
    status = vmlinuz.stat()
    parts = [str(vmlinuz.resolve()), status.st_size, status.st_mtime_ns]
    return root / "images" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _sound(place: Path) -> bool:
    """Whether a target folder is complete and undamaged."""
    try:
        digests = json.loads((place / _MANIFEST).read_text())
        damaged = [name for name, digest in digests.items() if _digest(place / name) != digest]
    except (OSError, ValueError, AttributeError):
        return False
    if damaged:
        log.warning("the kernel types in %s are damaged (%s): reading them again", place, ", ".join(damaged))
    return not damaged


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dump_header(vmlinux: Path) -> bytes:
    """Return vmlinux.h: every type of the kernel, and its kfuncs, as C."""
    dumped = proc.run([find_bpftool(), "btf", "dump", "file", vmlinux, "format", "c"], timeout_s=_BPFTOOL_TIMEOUT_S)
    if dumped.returncode != 0:
        raise SetupError(
            f"bpftool cannot read the BTF of {vmlinux.name}: {dumped.stderr.decode(errors='replace').strip()}",
            "the kernel needs CONFIG_DEBUG_INFO_BTF=y",
        )
    return dumped.stdout


def _probe(vmlinux: Path) -> set[str]:
    """List what sched_ext has in this kernel, from its BTF; see `features`."""
    present: set[str] = set()
    try:
        with Btf.parse(vmlinux) as btf:
            present.update(f"sched_ext_ops.{member}" for member in btf.members("sched_ext_ops"))
            for type_id, kind, name in btf.named(BtfKind.FUNC, BtfKind.STRUCT, BtfKind.ENUM, BtfKind.ENUM64):
                if kind in (BtfKind.ENUM, BtfKind.ENUM64):
                    if name.startswith("scx_"):
                        present.update(btf.enumerators(type_id))
                elif name.startswith(("scx_bpf_", "__scx_bpf_")) or (
                    kind == BtfKind.STRUCT and name.startswith("scx_")
                ):
                    present.add(name)
    except BpfError as error:
        raise SetupError(f"{vmlinux.name} holds no usable BTF: {error.message}") from None
    return present


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock against other processes; the kernel releases it however this one ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
