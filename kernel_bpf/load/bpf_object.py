"""One BPF object file in memory: its tunables, maps, programs and links.

Knows nothing of sched_ext: probes are loaded through it as well as policies.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kernel_bpf.load.btf import Btf, Variable
from kernel_bpf.load.libbpf import OpenOptions, ProgramInfo, call, libbpf, text
from kernel_bpf.load.memory import MapSize, check_memory
from schedagent.core.errors import BpfError, KernelRejected, PolicyError, SetupError, TunableError

TUNABLES = ".rodata"
STRUCT_OPS = (".struct_ops.link", ".struct_ops")
PROGRAM_TRACING = 26
PROGRAM_STRUCT_OPS = 27
PROGRAM_SYSCALL = 31
ITERATOR = "iter/"
"""Begins the section of a program that is read like a file, see probe_object.py."""
_LOG_LINES = 40
_INSTRUCTION_BYTES = 8
_LINK_FILE = "link"
LARGEST_READ = 64 << 10
"""Of a variable in a data section: nothing that a policy owns is read in amounts that the policy chooses."""


@dataclass(frozen=True)
class Program:
    """A program of an object: its `struct bpf_program *`, name, section and BPF_PROG_TYPE number."""

    pointer: int
    name: str
    section: str
    type: int

    @property
    def loaded(self) -> bool:
        """Whether the kernel has it: some programs are for certain kernels only."""
        descriptor: int = libbpf().bpf_program__fd(self.pointer)
        return descriptor >= 0


class BpfObject:
    """An opened object. Set tunables, then `load`, then use its maps and attach its programs; `close` undoes all.

    Example:
        with BpfObject.open(elf, "fifo") as policy:
            policy.set_tunables({"slice_us": 5000})
            policy.load()
    """

    def __init__(self, pointer: int, name: str, object_bytes: bytes) -> None:
        self.name = name
        self._pointer = pointer
        self._bytes = object_bytes  # libbpf may still read from it
        self._links: list[int] = []
        self._pinned_sections: dict[str, Path] = {}
        self._tunables: dict[str, Variable] | None = None

    @classmethod
    def open(cls, object_bytes: bytes, name: str) -> Self:
        """Parse an ELF file held in memory; needs no privilege. Raises PolicyError if it is no BPF object."""
        options = OpenOptions(ctypes.sizeof(OpenOptions), name.encode())
        try:
            pointer = call(
                "bpf_object__open_mem", object_bytes, len(object_bytes), ctypes.byref(options), about=f"{name!r}"
            )
        except BpfError as error:
            raise PolicyError(f"{name} is not a usable BPF object: {error.message}\n{error.log}".rstrip()) from None
        return cls(pointer, name, object_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach everything and free the object; idempotent."""
        self.detach()
        if self._pointer:
            libbpf().bpf_object__close(self._pointer)
            self._pointer = 0

    def tunables(self) -> dict[str, Variable]:
        """Return the `const volatile` variables, by name; a loader may set those that are integers."""
        if self._tunables is None:
            declared = self.variables(TUNABLES)
            self._tunables = {name: variable for name, variable in declared.items() if variable.volatile}
        return self._tunables

    def variables(self, section: str) -> dict[str, Variable]:
        """Return the global variables of a section such as .data, by name."""
        return Btf(libbpf().bpf_object__btf(self._pointer)).variables(section)

    def tunable_value(self, name: str) -> int:
        """Return what a tunable is set to, its default if it was not set."""
        variable = self._tunable(name)
        address = self._initial_value(TUNABLES) + variable.offset
        raw = ctypes.string_at(address, variable.size_bytes)
        return int.from_bytes(raw, "little", signed=variable.integer is not None and variable.integer.signed)

    def set_tunables(self, values: Mapping[str, int]) -> None:
        """Write tunables; only before `load`, which freezes them so that the kernel's verifier can rely on them.

        Raises:
            TunableError: the object has no such `const volatile` integer, or the value does not fit its type.
        """
        for name, value in values.items():
            integer = self._tunable(name).integer
            assert integer is not None
            if not integer.minimum <= value <= integer.maximum:
                raise TunableError(
                    f"tunable {name}={value} does not fit {integer.name}",
                    f"accepted: {integer.minimum} to {integer.maximum}",
                )
            raw = int(value).to_bytes(integer.size_bytes, "little", signed=integer.signed)
            ctypes.memmove(self._initial_value(TUNABLES) + self._tunable(name).offset, raw, len(raw))

    def struct_ops(self) -> dict[str, Variable]:
        """Return the struct_ops variables by name, which is that of their map, too."""
        return {name: variable for section in STRUCT_OPS for name, variable in self.variables(section).items()}

    def read_ops(self, ops: Variable, member: str) -> bytes:
        """Return what the source gave a member of a struct_ops variable; empty if its struct has no such member."""
        place = ops.members.get(member)
        return ctypes.string_at(self._initial_value(ops.name) + place.offset, place.size_bytes) if place else b""

    def write_ops(self, ops: Variable, member: str, value: int) -> None:
        """Set an integer member of a struct_ops variable; only before `load`.

        Raises:
            PolicyError: its struct has no such member.
        """
        place = ops.members.get(member)
        if place is None:
            raise PolicyError(f"{ops.struct} of {self.name} has no member {member!r}")
        raw = value.to_bytes(place.size_bytes, "little")
        ctypes.memmove(self._initial_value(ops.name) + place.offset, raw, len(raw))

    def load(self) -> None:
        """Create the maps and give every program to the kernel's verifier.

        Raises:
            KernelRejected: the kernel refused; the message ends with the last lines of the verifier's log.
            SetupError: this process may not load BPF.
        """
        try:
            call("bpf_object__load", self._pointer, about=self.name)
        except BpfError as error:
            if error.errno == errno.EPERM and "BEGIN PROG LOAD LOG" not in error.log:
                raise SetupError(f"this process may not load BPF: {error.message}", "run as root") from None
            raise KernelRejected(f"the kernel refused {self.name}: {error.message}\n{last_lines(error.log)}") from None

    def maps(self) -> Iterator[tuple[int, str, int]]:
        """Yield (pointer, name, BPF_MAP_TYPE number) of every map."""
        library = libbpf()
        pointer: int | None = library.bpf_object__next_map(self._pointer, None)
        while pointer:
            yield pointer, text(library.bpf_map__name(pointer)), library.bpf_map__type(pointer)
            pointer = library.bpf_object__next_map(self._pointer, pointer)

    def find_map(self, name: str) -> int | None:
        """Return the pointer of a map by its name; a section's map goes by the section's name (.data)."""
        pointer: int | None = libbpf().bpf_object__find_map_by_name(self._pointer, name.encode())
        return pointer

    def fill_map(self, name: str, entries: Mapping[int, int]) -> None:
        """Write unsigned keys and values into a loaded hash map.

        Raises:
            PolicyError: the object has no such map, or the entries do not fit it.
        """
        pointer = self.find_map(name)
        if pointer is None:
            raise PolicyError(f"{self.name} has no map {name!r} for {len(entries)} entries", "leave that input empty")
        room: int = libbpf().bpf_map__max_entries(pointer)
        if len(entries) > room:
            raise PolicyError(f"map {name!r} of {self.name} has room for {room} entries, not for {len(entries)}")
        sizes = libbpf().bpf_map__key_size(pointer), libbpf().bpf_map__value_size(pointer)
        for pair in entries.items():
            try:
                key, value = (number.to_bytes(size, "little") for number, size in zip(pair, sizes, strict=True))
            except OverflowError:
                raise PolicyError(f"entry {pair} does not fit map {name!r}: {sizes[0]} and {sizes[1]} bytes") from None
            call("bpf_map__update_elem", pointer, key, len(key), value, len(value), 0, about=f"map {name!r}")

    def map_sizes(self) -> tuple[MapSize, ...]:
        """Return what decides how much memory each map and data section takes."""
        return tuple(_map_size(pointer) for pointer, _name, _kind in self.maps())

    def check_memory(self) -> None:
        """Refuse maps and data sections that are too large together; before `load`, which gives out their memory.

        Raises:
            PolicyError: with what is too large.
        """
        check_memory(self.name, self.map_sizes(), call("libbpf_num_possible_cpus"))

    def memory_bytes(self) -> int:
        """Return what the kernel counts for the maps and data sections of a loaded object ("memlock" of
        /proc/self/fdinfo, include/linux/bpf.h: map_mem_usage)."""
        return sum(_memlock(libbpf().bpf_map__fd(pointer)) for pointer, _name, _kind in self.maps())

    def section_bytes(self, section: str) -> int:
        """Return how large a data section is; raise BpfError if there is no such section."""
        pointer = self.find_map(section)
        if pointer is None:
            raise BpfError(f"{self.name} has no section {section}")
        size_bytes: int = libbpf().bpf_map__value_size(pointer)
        return size_bytes

    def read_variable(self, section: str, offset: int, size_bytes: int) -> bytes:
        """Return the present content of a part of a data section of a loaded or adopted object.

        Only the pages that hold it are mapped, so the size of the section does not matter; one that the kernel does not
        let be mapped is copied if it is small.

        Raises:
            BpfError: there is no such section, the part does not lie in it, or it can neither be mapped nor copied.
        """
        length = self.section_bytes(section)
        pointer = self.find_map(section)
        if not (offset >= 0 and 0 <= size_bytes <= LARGEST_READ and offset + size_bytes <= length):
            raise BpfError(f"bytes {offset} to {offset + size_bytes} cannot be read of the {length} of {section}")
        first = offset - offset % mmap.PAGESIZE
        try:
            with mmap.mmap(
                libbpf().bpf_map__fd(pointer), offset + size_bytes - first, prot=mmap.PROT_READ, offset=first
            ) as pages:
                return pages[offset - first :]
        except OSError as error:
            if length > LARGEST_READ:
                raise BpfError(
                    f"{section} of {self.name} cannot be mapped: {error.strerror}", error.errno or 0
                ) from None
        return self._copy(pointer, section, length)[offset : offset + size_bytes]

    def _copy(self, pointer: int | None, section: str, length: int) -> bytes:
        """Copy a whole section out of the kernel."""
        value, key = ctypes.create_string_buffer(length), bytes(4)
        call("bpf_map__lookup_elem", pointer, key, len(key), value, len(value), 0, about=section)
        return value.raw

    def programs(self) -> Iterator[Program]:
        """Yield every program."""
        library = libbpf()
        pointer: int | None = library.bpf_object__next_program(self._pointer, None)
        while pointer:
            name, section = library.bpf_program__name(pointer), library.bpf_program__section_name(pointer)
            yield Program(pointer, text(name), text(section), library.bpf_program__type(pointer))
            pointer = library.bpf_object__next_program(self._pointer, pointer)

    def pin(self, folder: Path, sections: Iterable[str] = ()) -> None:
        """Let all links, and some data sections, outlive this process: each as a file in a folder of a BPF file system.

        Cut short, the folder holds some of them: `unpin` then, or remove the folder.

        Raises:
            BpfError: the folder is not on a BPF file system, or holds something already.
        """
        for number, link in enumerate(self._links):
            call("bpf_link__pin", link, str(folder / f"{_LINK_FILE}{number}").encode(), about=self.name)
        for section in sections:
            place = folder / _section_file(section)
            call("bpf_map__pin", self.find_map(section), str(place).encode(), about=section)
            self._pinned_sections[section] = place

    def unpin(self) -> None:
        """Let links and sections end with this process again; idempotent."""
        for link in self._links:
            path = libbpf().bpf_link__pin_path(link)
            if path and os.path.lexists(path):
                call("bpf_link__unpin", link, about=self.name)
        while self._pinned_sections:
            section, place = self._pinned_sections.popitem()
            if place.exists():  # not unlinked by hand: libbpf takes what it pinned for pinned, and pins it only once
                call("bpf_map__unpin", self.find_map(section), str(place).encode(), about=section)

    def adopt(self, folder: Path, sections: Iterable[str] = ()) -> None:
        """Take over what `pin` of another process left; the object is opened and not loaded.

        Raises:
            BpfError: something is missing there.
        """
        for section in sections:
            place = folder / _section_file(section)
            descriptor = call("bpf_obj_get", str(place).encode(), about=str(place))
            try:
                call("bpf_map__reuse_fd", self.find_map(section), descriptor, about=section)
            finally:
                os.close(descriptor)
            self._pinned_sections[section] = place
        count = sum(path.name.startswith(_LINK_FILE) for path in folder.iterdir())
        for number in range(count):
            place = folder / f"{_LINK_FILE}{number}"
            self._links.append(call("bpf_link__open", str(place).encode(), about=str(place)))

    def leave(self) -> None:
        """Close all links without unpinning them: those that are pinned stay in force."""
        self._pinned_sections.clear()
        self._destroy_links()

    def attach_programs(self) -> list[str]:
        """Attach every loaded program that attaches by itself (tracing, not struct_ops, syscall and iterators).

        Returns:
            Names of those that trace a kernel function and cannot: EBUSY, which is what register_fentry()
            (kernel/bpf/trampoline.c) has where the kernel's function tracer is missing or switched off.
        """
        untraced = []
        for program in self.programs():
            by_itself = program.type not in (PROGRAM_STRUCT_OPS, PROGRAM_SYSCALL) and program.loaded
            by_itself = by_itself and not program.section.startswith(ITERATOR)
            if by_itself and libbpf().bpf_program__autoattach(program.pointer):
                try:
                    self._links.append(call("bpf_program__attach", program.pointer, about=program.name))
                except BpfError as error:
                    if (program.type, error.errno) != (PROGRAM_TRACING, errno.EBUSY):
                        raise
                    untraced.append(program.name)
        return untraced

    def attach_struct_ops(self, name: str) -> None:
        """Register a struct_ops variable with the kernel."""
        self._links.append(call("bpf_map__attach_struct_ops", self.find_map(name), about=self.name))

    def detach(self) -> None:
        """Unpin, undo and destroy all links, the newest first; idempotent.

        A link ends with its last file, and a process that was forked since holds one: so it is detached, too. Links
        that cannot be detached (EOPNOTSUPP: tracing programs) or have ended answer with an error of no interest.
        """
        self.unpin()
        for link in reversed(self._links):
            libbpf().bpf_link__detach(link)
        self._destroy_links()

    def _destroy_links(self) -> None:
        while self._links:
            call("bpf_link__destroy", self._links.pop(), about=self.name)

    def verifier_stats(self) -> dict[str, dict[str, int]]:
        """Return, for each loaded program by name, what the kernel's verifier did with it.

        instructions: 8-byte instructions after the verifier's rewriting; verified_instructions: how many it walked
        over all paths (the "processed N insns" of its log); jited_bytes: machine code, 0 if not compiled.
        Source: struct bpf_prog_info, include/uapi/linux/bpf.h.
        """
        stats = {}
        for program in self._loaded():
            info = self._info(program)
            stats[program.name] = {
                "instructions": info.xlated_prog_len // _INSTRUCTION_BYTES,
                "verified_instructions": info.verified_insns,
                "jited_bytes": info.jited_prog_len,
            }
        return stats

    def translated(self) -> Iterator[bytes]:
        """Yield the instructions of each loaded program, subprograms included, as the kernel's verifier left them.

        It has removed what it proved that no execution reaches (opt_remove_dead_code() in kernel/bpf/verifier.c).
        """
        for program in self._loaded():
            size = self._info(program).xlated_prog_len
            content = ctypes.create_string_buffer(size)
            self._info(program, ProgramInfo(xlated_prog_len=size, xlated_prog_insns=ctypes.addressof(content)))
            yield content.raw

    def _loaded(self) -> Iterator[Program]:
        return (program for program in self.programs() if program.loaded)

    @staticmethod
    def _info(program: Program, wanted: ProgramInfo | None = None) -> ProgramInfo:
        """What the kernel says of a loaded program; `wanted` names what is to be copied besides."""
        info = wanted or ProgramInfo()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        fd = call("bpf_program__fd", program.pointer, about=program.name)
        call("bpf_prog_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(size), about=program.name)
        return info

    def _tunable(self, name: str) -> Variable:
        """Return a settable variable; raise TunableError naming those that exist."""
        tunables = {known: variable for known, variable in self.tunables().items() if variable.integer}
        if name not in tunables:
            raise TunableError(f"{self.name} has no tunable {name!r}", f"it has: {', '.join(tunables) or 'none'}")
        return tunables[name]

    def _initial_value(self, name: str) -> int:
        """Return the address of a data section's, or of a struct_ops variable's, content before load."""
        pointer = self.find_map(name)
        if pointer is None:
            raise BpfError(f"{self.name} has no section or struct_ops {name}")
        return call("bpf_map__initial_value", pointer, ctypes.byref(ctypes.c_size_t()), about=name)


def _map_size(pointer: int) -> MapSize:
    library = libbpf()
    inner: int | None = library.bpf_map__inner_map(pointer)
    return MapSize(
        text(library.bpf_map__name(pointer)),
        library.bpf_map__type(pointer),
        library.bpf_map__key_size(pointer),
        library.bpf_map__value_size(pointer),
        library.bpf_map__max_entries(pointer),
        _map_size(inner) if inner else None,
        library.bpf_map__is_internal(pointer),
    )


def _memlock(descriptor: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("memlock:"))


def _section_file(section: str) -> str:
    """What a data section is called where it is pinned: no name in a BPF file system holds a dot."""
    return f"section{section.replace('.', '_')}"


def last_lines(log: str, lines: int = _LOG_LINES) -> str:
    """Cut libbpf's log down to what explains a refusal: the end of the first refused program's verifier log.

    Without such a log (an unknown kfunc, a failed relocation) the end of libbpf's own messages gives the reason.
    """
    before, begin, rest = log.partition("-- BEGIN PROG LOAD LOG --")
    if not begin:
        return "\n".join(log.rstrip().splitlines()[-lines:])
    verifier_log = rest.partition("-- END PROG LOAD LOG --")[0]
    verdict = [line for line in verifier_log.splitlines() if line.strip() and not line.startswith("processed ")]
    program = [line for line in before.splitlines() if "BPF program load failed" in line][-1:]
    return "\n".join(program + verdict[-lines:])


def count_loaded() -> tuple[int, int]:
    """Return how many BPF programs and how many maps the kernel holds; raise BpfError without the privilege to ask."""
    return _count("bpf_prog_get_next_id"), _count("bpf_map_get_next_id")


def _count(next_id: str) -> int:
    """Walk the kernel's ids with a call that answers ENOENT behind the last one."""
    number, count = ctypes.c_uint32(0), 0
    while True:
        try:
            call(next_id, number, ctypes.byref(number))
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return count
            raise
        count += 1
