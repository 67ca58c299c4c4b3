"""The parts of a 64-bit little-endian BPF ELF object that libbpf looks at: sections, symbols, relocations.

Not pyelftools, which reads kernels here: version 0.33 refuses damaged files soundly but has no limits. It unpacked a
compressed section of 260 kB to 256 MiB, and took 0.5 s for each section header that calls the same 4 MiB a hash table.
Here every number is checked against the file before it is used.

Sections are copies, not memoryviews of the file: CPython 3.11 can end with a segmentation fault when the garbage
collector finds a memoryview and a struct.iter_unpack() over it in one cycle, which an exception's traceback makes.
Layouts: include/uapi/linux/elf.h; what libbpf accepts: bpf_object__elf_collect() in tools/lib/bpf/libbpf.c.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from schedagent.core.deployment import LARGEST_OBJECT_BYTES, LARGEST_READ_BYTES
from schedagent.core.errors import PolicyError

SECTION_LIMIT = 4096
SYMBOL_LIMIT = 1 << 14
RELOCATION_LIMIT = 1 << 16
NAME_LIMIT_BYTES = 511
"""KSYM_NAME_LEN of include/linux/kallsyms.h less its NUL: the longest name that the kernel takes."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QII")
_IDENTITY = b"\x7fELF\x02\x01\x01"  # 64 bits, least significant byte first, version 1
_RELOCATABLE_FILE = 1
_MACHINE_BPF = 247
_FIRST_RESERVED_SECTION = 0xFF00
_GLOBAL, _WEAK = 1, 2
_ARENA_SECTION = ".addr_space.1"


class SectionType(IntEnum):
    """The section types that matter for a BPF object."""

    PROGBITS = 1
    SYMTAB = 2
    STRTAB = 3
    NOBITS = 8
    REL = 9


_EXECUTABLE = 4


class SymbolType(IntEnum):
    """The symbol types that matter for a BPF object."""

    NOTYPE = 0
    OBJECT = 1
    FUNC = 2
    SECTION = 3


class RelocationType(IntEnum):
    """Documentation/bpf/llvm_reloc.rst."""

    LD_IMM64 = 1
    ABS64 = 2
    CALL = 10


@dataclass(frozen=True)
class Section:
    """One section.

    Args:
        index: in the section table.
        content: its bytes in the file; none for NOBITS.
        size: what it takes in memory.
        link, info: as in the section header.
        offset: of its content in the file.
    """

    index: int
    name: str
    type: int
    executable: bool
    content: bytes
    size: int
    link: int
    info: int
    offset: int = 0


@dataclass(frozen=True)
class Symbol:
    """One symbol.

    Args:
        section: index of the section it lies in, 0 if it is undefined.
        value: offset in that section.
    """

    name: str
    type: int
    section: int
    value: int
    size: int
    is_global: bool
    weak: bool


@dataclass(frozen=True)
class Relocation:
    """The bytes at some offset of a section refer to a symbol."""

    type: int
    symbol: Symbol


@dataclass(frozen=True)
class ElfObject:
    """A BPF object file.

    Args:
        sections: by index.
        symbols: in order.
        relocations: by index of the section they apply to, then by offset in it.
    """

    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    relocations: Mapping[int, Mapping[int, Relocation]]

    def find(self, name: str) -> Section | None:
        """Return the section with this name that holds something, if there is one."""
        return next((section for section in self.sections if section.name == name and section.size), None)


def malformed(message: str) -> PolicyError:
    """The error for an object that no compiler wrote."""
    return PolicyError(f"the compiled object cannot be read: {message}", "compile it with: clang -target bpf -g -O2 -c")


def read_elf(object_bytes: bytes) -> ElfObject:
    """Read an object file.

    Raises:
        PolicyError: it is no BPF object, cut short, contradicts itself, or exceeds a limit of this module.
    """
    size = size_beside_arena(object_bytes)
    if size > LARGEST_OBJECT_BYTES:
        raise malformed(f"{size} bytes; at most {LARGEST_OBJECT_BYTES} are accepted")
    sections = _read_sections(bytes(object_bytes))
    _check_names(sections)
    symbols = _read_symbols(sections)
    return ElfObject(sections, symbols, _read_relocations(sections, symbols))


def size_beside_arena(object_bytes: bytes) -> int:
    """Return how many bytes an object has, but for those of its arena's variables where all of them are zero.

    libbpf copies them from the file, so the linker writes what is zero, too (bpf_object__elf_collect()).
    """
    size = len(object_bytes)
    if not LARGEST_OBJECT_BYTES < size <= LARGEST_READ_BYTES:
        return size
    try:
        sections = _read_sections(bytes(object_bytes))
    except PolicyError:
        return size
    return size - sum(
        len(section.content)
        for section in sections
        if section.name == _ARENA_SECTION and section.content.count(0) == len(section.content)
    )


def read_name(table: bytes, offset: int, what: str) -> str:
    """Return the NUL-terminated name at an offset of a string table.

    Raises:
        PolicyError: it does not lie in the table, is too long, or holds anything but printable ASCII.
    """
    if offset >= len(table):
        raise malformed(f"the name of {what} lies at byte {offset} of a string table of {len(table)}")
    name, end, _rest = table[offset : offset + NAME_LIMIT_BYTES + 1].partition(b"\0")
    if not end:
        raise malformed(f"the name of {what} does not end within {NAME_LIMIT_BYTES} bytes")
    if not name.isascii() or not (text := name.decode("ascii") or " ").isprintable():
        raise malformed(f"the name of {what} holds bytes that are no printable ASCII: {name[:40]!r}")
    return text if name else ""


def _read_sections(file: bytes) -> tuple[Section, ...]:
    if len(file) < _HEADER.size or file[: len(_IDENTITY)] != _IDENTITY:
        raise malformed(f"no 64-bit little-endian ELF file; it starts with {file[:8].hex(' ') or 'nothing'}")
    header = _HEADER.unpack_from(file)
    _identity, kind, machine, _version, _entry, _programs, table, _flags, *_sizes, entry_size, count, names = header
    if (kind, machine) != (_RELOCATABLE_FILE, _MACHINE_BPF):
        raise malformed(f"no relocatable BPF object: file type {kind}, machine {machine}")
    if entry_size != _SECTION_HEADER.size or not 0 < count <= SECTION_LIMIT or not 0 < names < count:
        raise malformed(f"{count} sections of {entry_size} bytes each, names in section {names}")
    if table + count * entry_size > len(file):
        raise malformed(f"a table of {count} sections at byte {table} of {len(file)}")
    headers = list(_SECTION_HEADER.iter_unpack(file[table : table + count * entry_size]))
    _check_places(headers, len(file))
    name_table = _content(file, headers[names])
    return tuple(_section(file, index, fields, name_table) for index, fields in enumerate(headers))


def _check_places(headers: list[tuple[int, ...]], file_size: int) -> None:
    """Refuse sections that leave the file, or share bytes of it: reading each would cost a multiple of its size."""
    places = [
        (offset, size) for _name, kind, _flags, _address, offset, size, *_rest in headers[1:] if _in_file(kind, size)
    ]
    end = 0
    for offset, size in sorted(places):
        if offset + size > file_size:
            raise malformed(f"a section takes bytes {offset} to {offset + size} of {file_size}")
        if offset < end:
            raise malformed(f"two sections share byte {offset} of the file")
        end = offset + size


def _in_file(kind: int, size: int) -> bool:
    return kind != SectionType.NOBITS and size > 0


def _section(file: bytes, index: int, fields: tuple[int, ...], names: bytes) -> Section:
    name, kind, flags, _address, offset, size, link, info, _alignment, _entry_size = fields
    if index == 0:
        return Section(0, "", 0, False, b"", 0, 0, 0)
    return Section(
        index=index,
        name=read_name(names, name, f"section {index}"),
        type=kind,
        executable=bool(flags & _EXECUTABLE) and kind == SectionType.PROGBITS,
        content=_content(file, fields),
        size=size,
        link=link,
        info=info,
        offset=offset,
    )


def _content(file: bytes, fields: tuple[int, ...]) -> bytes:
    kind, offset, size = fields[1], fields[4], fields[5]
    return file[offset : offset + size] if _in_file(kind, size) else b""


def _check_names(sections: tuple[Section, ...]) -> None:
    """Refuse what can be read in two ways: one name for two sections with content."""
    seen: set[str] = set()
    for section in sections:
        if section.type not in (SectionType.PROGBITS, SectionType.NOBITS) or not section.size:
            continue
        if section.name in seen:
            raise malformed(f"two sections are called {section.name!r}")
        seen.add(section.name)


def _read_symbols(sections: tuple[Section, ...]) -> tuple[Symbol, ...]:
    tables = [section for section in sections if section.type == SectionType.SYMTAB]
    if len(tables) != 1:
        raise malformed(f"{len(tables)} symbol tables instead of one")
    (table,) = tables
    if len(table.content) % _SYMBOL.size or len(table.content) // _SYMBOL.size > SYMBOL_LIMIT:
        raise malformed(f"a symbol table of {len(table.content)} bytes; at most {SYMBOL_LIMIT} symbols are accepted")
    if not 0 < table.link < len(sections) or sections[table.link].type != SectionType.STRTAB:
        raise malformed(f"the symbols' names are in section {table.link}, which is no string table")
    names = sections[table.link].content
    symbols = tuple(_symbol(fields, names, sections) for fields in _SYMBOL.iter_unpack(table.content))
    _check_global_names(symbols)
    return symbols


def _check_global_names(symbols: tuple[Symbol, ...]) -> None:
    """Refuse two global symbols of one name: libbpf takes the first, whatever its section."""
    seen: set[str] = set()
    for symbol in symbols:
        if symbol.is_global and symbol.name in seen:
            raise malformed(f"two global symbols are called {symbol.name!r}")
        if symbol.is_global:
            seen.add(symbol.name)


def _symbol(fields: tuple[int, ...], names: bytes, sections: tuple[Section, ...]) -> Symbol:
    name_offset, info, _visibility, section, value, size = fields
    name = read_name(names, name_offset, "a symbol") if name_offset else ""
    if len(sections) <= section < _FIRST_RESERVED_SECTION:
        raise malformed(f"symbol {name!r} lies in section {section} of {len(sections)}")
    binding = info >> 4
    return Symbol(name, info & 0xF, section, value, size, binding in (_GLOBAL, _WEAK), binding == _WEAK)


def _read_relocations(sections: tuple[Section, ...], symbols: tuple[Symbol, ...]) -> dict[int, dict[int, Relocation]]:
    """Read the relocations of code, of struct_ops variables and of map declarations, as libbpf does."""
    by_section: dict[int, dict[int, Relocation]] = {}
    count = 0
    for section in sections:
        if section.type != SectionType.REL:
            continue
        if not 0 < section.info < len(sections):
            raise malformed(f"{section.name!r} is for section {section.info} of {len(sections)}")
        target = sections[section.info]
        if not (target.executable or target.name.lstrip("?") in (".struct_ops", ".struct_ops.link")):
            continue
        if section.name != f".rel{target.name}" or len(section.content) % _RELOCATION.size:
            raise malformed(f"{section.name!r} of {len(section.content)} bytes relocates {target.name!r}")
        count += len(section.content) // _RELOCATION.size
        if count > RELOCATION_LIMIT:
            raise malformed(f"more than {RELOCATION_LIMIT} relocations")
        _add_relocations(by_section.setdefault(target.index, {}), section, target, symbols)
    return by_section


def _add_relocations(
    relocations: dict[int, Relocation], section: Section, target: Section, symbols: tuple[Symbol, ...]
) -> None:
    for offset, kind, symbol in _RELOCATION.iter_unpack(section.content):
        place = f"the relocation of byte {offset} of {target.name!r}"
        if offset % 8 or offset + 8 > len(target.content):
            raise malformed(f"{place} is outside its {len(target.content)} bytes, or not at a multiple of 8")
        if symbol >= len(symbols):
            raise malformed(f"{place} names symbol {symbol} of {len(symbols)}")
        if offset in relocations:
            raise malformed(f"{place} is there twice")
        relocations[offset] = Relocation(kind, symbols[symbol])
