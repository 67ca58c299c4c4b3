"""Where functions were inlined: DWARF's DW_TAG_inlined_subroutine, which BTF has nothing of.

    for call in inlined_calls(object_bytes): ...

What BTF says of an instruction is the line it comes from: in a wrapper of a header that is the header's. The caller's
line is in the DWARF that clang writes beside, until libbpf's linker leaves it out. An object from elsewhere may hold
anything: nothing is believed of it but lines to show, and what cannot be read yields nothing.

Layouts: DWARF 5 (dwarfstd.org), sections 7.5 (units, abbreviations, forms), 7.25 (range lists) and 6.2.4 (line tables).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from schedagent.core.policies.artifact import InlinedCall

MOST_CALLS = 1 << 14
_MOST_READ = 1 << 20
"""Entries and attributes that are looked at in all: twenty times what the largest schedulers have."""
_MOST_UNITS, _MOST_RANGES, _MOST_FILES, _MOST_DEPTH = 32, 64, 4096, 64
_MOST_ATTRIBUTES, _MOST_FORMATS = 64, 8
_LONGEST_ABBREVIATIONS, _LONGEST_NAME = 1 << 15, 256

_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QII")
_SYMBOLS, _RELOCATIONS, _NO_BITS, _COMPRESSED = 2, 9, 8, 0x800

_UNIT, _SUBPROGRAM, _INLINED = 0x11, 0x2E, 0x1D
_COMPILE_UNIT_TYPE = 1
_NAME, _STMT_LIST, _LOW_PC, _HIGH_PC, _ORIGIN, _RANGES = 0x03, 0x10, 0x11, 0x12, 0x31, 0x55
_CALL_FILE, _CALL_LINE, _STR_OFFSETS_BASE, _ADDR_BASE, _RNGLISTS_BASE = 0x58, 0x59, 0x72, 0x73, 0x74

_FIXED = {
    **{0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x0E: 4, 0x10: 4, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8},
    **{0x17: 4, 0x19: 0, 0x1C: 4, 0x1D: 4, 0x1E: 16, 0x1F: 4, 0x20: 8, 0x21: 0, 0x24: 8},
    **{0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4},
}
"""Bytes of the forms that always take as many (addresses of 8 bytes, the 32-bit format)."""
_LEB = frozenset({0x0D, 0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23})
_BLOCKS = {0x03: 2, 0x04: 4, 0x0A: 1}
_STRING, _BLOCK, _EXPRESSION, _IMPLICIT, _SDATA = 0x08, 0x09, 0x18, 0x21, 0x0D
_STRP, _LINE_STRP = 0x0E, 0x1F
_INDEXED_STRINGS = frozenset({0x1A, 0x25, 0x26, 0x27, 0x28})
_INDEXED_ADDRESSES = frozenset({0x1B, 0x29, 0x2A, 0x2B, 0x2C})
_ADDRESS, _INDEXED_RANGES = 0x01, 0x23
_PATH, _FOLDER = 1, 2


class _Place(NamedTuple):
    """An address: a section, by its index, and the offset in it."""

    section: int
    offset: int


class _Abbreviation(NamedTuple):
    """What entries of one kind hold; `size` is that of all attributes, -1 if it varies."""

    tag: int
    children: bool
    attributes: tuple[tuple[int, int, int], ...]
    size: int


class _Value(NamedTuple):
    """An attribute as it is encoded: its form and number, and the bytes of a text that stands in place."""

    form: int
    number: int
    text: bytes = b""


@dataclass(frozen=True)
class _Elf:
    """The sections of an object by name, and what relocations make of addresses in them."""

    contents: Mapping[str, bytes]
    targets: Mapping[str, Mapping[int, _Place]]

    def get(self, name: str) -> bytes:
        return self.contents.get(name, b"")


@dataclass
class _Unit:
    """What the entries of a compilation unit refer to."""

    start: int
    version: int
    abbreviations: Mapping[int, _Abbreviation]
    bases: dict[int, int] = field(default_factory=dict)
    low: _Place | None = None
    files: tuple[str, ...] = ()


class _Call(NamedTuple):
    """An inlined call before it is known which function holds it."""

    ranges: tuple[tuple[_Place, int], ...]
    file: str
    line: int
    depth: int


def inlined_calls(object_bytes: bytes) -> tuple[InlinedCall, ...]:
    """Return the calls that were inlined, the outer ones before those within them; none if the object does not say.

    Calls that the compiler merged into one have no line, and are left out.
    """
    try:
        return tuple(_Reader(_read_elf(object_bytes)).calls())
    except (struct.error, IndexError, KeyError, ValueError, OverflowError):
        return ()


def _read_elf(file: bytes) -> _Elf:
    if file[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", file, 40)
    count, names_index = struct.unpack_from("<HH", file, 60)
    headers = [_SECTION_HEADER.unpack_from(file, table + _SECTION_HEADER.size * index) for index in range(count)]
    names = _bytes_of(file, headers[names_index])
    titles = [_text(names, header[0]) for header in headers]
    wanted = {title: index for index, title in enumerate(titles) if title.startswith(".debug_")}
    contents = {title: _bytes_of(file, headers[index]) for title, index in wanted.items()}
    symbols = next((_bytes_of(file, header) for header in headers if header[1] == _SYMBOLS), b"")
    targets = {}
    for header in headers:
        if header[1] == _RELOCATIONS and header[7] < count and titles[header[7]] in (".debug_addr", ".debug_info"):
            targets[titles[header[7]]] = dict(_relocated(_bytes_of(file, header), symbols))
    return _Elf(contents, targets)


def _bytes_of(file: bytes, header: tuple[int, ...]) -> bytes:
    """Return a section's bytes; a compressed one is left alone."""
    if header[1] == _NO_BITS or header[2] & _COMPRESSED:
        return b""
    return file[header[4] : header[4] + header[5]]


def _relocated(content: bytes, symbols: bytes) -> Iterator[tuple[int, _Place]]:
    """Yield where an address is written and the symbol it is counted from: section and offset."""
    for offset, _kind, index in _RELOCATION.iter_unpack(content[: len(content) // _RELOCATION.size * _RELOCATION.size]):
        _name, _info, _other, section, value, _size = _SYMBOL.unpack_from(symbols, _SYMBOL.size * index)
        yield offset, _Place(section, value)


class _Reader:
    """Reads the entries of all units, one after the other."""

    def __init__(self, elf: _Elf) -> None:
        self._elf = elf
        self._info = elf.get(".debug_info")
        self._names: dict[int, str | int] = {}
        self._left = _MOST_READ

    def calls(self) -> Iterator[InlinedCall]:
        offset, count = 0, 0
        for _unit in range(_MOST_UNITS):
            if offset + 12 > len(self._info):
                return
            (length,) = struct.unpack_from("<I", self._info, offset)
            for function, low, call in self._unit(offset, offset + 4 + length):
                for place, size in call.ranges:
                    start = place.offset - low.offset
                    if call.line and place.section == low.section and start >= 0 and size > 0:
                        yield InlinedCall(function, start, start + size, call.file, call.line)
                        count += 1
                        if count >= MOST_CALLS:
                            return
            offset += 4 + length

    def _unit(self, offset: int, end: int) -> list[tuple[str, _Place, _Call]]:
        (version,) = struct.unpack_from("<H", self._info, offset + 4)
        if version == 5:
            kind, address_size, table = struct.unpack_from("<BBI", self._info, offset + 6)
            start = offset + 12
        else:
            table, address_size = struct.unpack_from("<IB", self._info, offset + 6)
            kind, start = _COMPILE_UNIT_TYPE, offset + 11
        if version not in (4, 5) or kind != _COMPILE_UNIT_TYPE or address_size != 8:
            return []
        return self._entries(_Unit(offset, version, _abbreviations(self._elf.get(".debug_abbrev"), table)), start, end)

    def _entries(self, unit: _Unit, offset: int, end: int) -> list[tuple[str, _Place, _Call]]:
        """Walk the tree of entries; functions are named when all of them are known."""
        within: list[tuple[int, _Place] | None] = []
        depths: list[int] = []
        met: list[tuple[int, _Place, _Call]] = []
        while offset < min(end, len(self._info)):
            self._spend(1)
            here = offset
            code, offset = _unsigned(self._info, offset)
            if code == 0:
                if within:
                    within.pop()
                    depths.pop()
                continue
            kind = unit.abbreviations[code]
            function, depth = (within[-1], depths[-1]) if within else (None, 0)
            if kind.tag in (_UNIT, _SUBPROGRAM, _INLINED):
                values, offset = self._values(kind, offset)
                if kind.tag == _UNIT:
                    self._settle(unit, values)
                elif kind.tag == _SUBPROGRAM:
                    function, depth = self._function(unit, here, values), 0
                elif function and depth < _MOST_DEPTH:
                    depth += 1
                    met.append((*function, self._call(unit, values, depth)))
            elif kind.size >= 0:
                offset += kind.size
            else:
                _values, offset = self._values(kind, offset)
            if kind.children:
                within.append(function)
                depths.append(depth)
        met.sort(key=lambda each: each[2].depth)
        return [(name, low, call) for entry, low, call in met if (name := self._name_of(entry))]

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError("more entries than any compiler writes")

    def _function(self, unit: _Unit, here: int, values: Mapping[int, _Value]) -> tuple[int, _Place] | None:
        """Note the name of a function, or where it stands; return where its code lies, if it has any."""
        if _NAME in values:
            self._names[here] = self._string(unit, values[_NAME])
        elif _ORIGIN in values:
            self._names[here] = unit.start + values[_ORIGIN].number
        low = self._address(unit, values.get(_LOW_PC))
        return None if low is None else (here, low)

    def _name_of(self, entry: int) -> str:
        for _hop in range(4):
            name = self._names.get(entry, "")
            if isinstance(name, str):
                return name
            entry = name
        return ""

    def _call(self, unit: _Unit, values: Mapping[int, _Value], depth: int) -> _Call:
        index = values[_CALL_FILE].number if _CALL_FILE in values else 0
        file = unit.files[index] if index < len(unit.files) else ""
        line = values[_CALL_LINE].number if _CALL_LINE in values else 0
        return _Call(tuple(self._ranges(unit, values)), file, line, depth)

    def _ranges(self, unit: _Unit, values: Mapping[int, _Value]) -> Iterator[tuple[_Place, int]]:
        low = self._address(unit, values.get(_LOW_PC))
        if low is not None and _HIGH_PC in values:
            yield low, values[_HIGH_PC].number
        elif _RANGES in values and unit.version == 5:
            yield from self._range_list(unit, values[_RANGES])

    def _range_list(self, unit: _Unit, value: _Value) -> Iterator[tuple[_Place, int]]:
        lists, base = self._elf.get(".debug_rnglists"), unit.bases.get(_RNGLISTS_BASE, 0)
        offset = value.number
        if value.form == _INDEXED_RANGES:
            offset = base + struct.unpack_from("<I", lists, base + 4 * value.number)[0]
        origin = unit.low
        for _count in range(_MOST_RANGES):
            kind, offset = lists[offset], offset + 1
            if kind not in (1, 2, 3, 4):
                return  # the end of the list, or addresses that are written out, which clang does not do
            first, offset = _unsigned(lists, offset)
            if kind == 1:
                origin = self._indexed(unit, first)
                continue
            second, offset = _unsigned(lists, offset)
            if kind == 4 and origin is not None:
                yield _Place(origin.section, origin.offset + first), second - first
            elif kind != 4:
                start = self._indexed(unit, first)
                yield start, second if kind == 3 else self._indexed(unit, second).offset - start.offset

    def _address(self, unit: _Unit, value: _Value | None) -> _Place | None:
        if value is None:
            return None
        if value.form in _INDEXED_ADDRESSES:
            return self._indexed(unit, value.number)
        return None

    def _indexed(self, unit: _Unit, index: int) -> _Place:
        offset = unit.bases.get(_ADDR_BASE, 8) + 8 * index
        (addend,) = struct.unpack_from("<Q", self._elf.get(".debug_addr"), offset)
        target = self._elf.targets.get(".debug_addr", {}).get(offset, _Place(0, 0))
        return _Place(target.section, target.offset + addend)

    def _settle(self, unit: _Unit, values: Mapping[int, _Value]) -> None:
        for name in (_STR_OFFSETS_BASE, _ADDR_BASE, _RNGLISTS_BASE):
            if name in values:
                unit.bases[name] = values[name].number
        unit.low = self._address(unit, values.get(_LOW_PC))
        if _STMT_LIST in values and unit.version == 5:
            unit.files = tuple(self._files(values[_STMT_LIST].number))

    def _files(self, offset: int) -> Iterator[str]:
        """Yield the file names of a line table, by number."""
        table = self._elf.get(".debug_line")
        opcodes = table[offset + 17]
        offset += 18 + opcodes - 1
        folders, offset = self._line_entries(table, offset)
        files, offset = self._line_entries(table, offset)
        for file in files:
            name = file[_PATH][1]
            index = file[_FOLDER][0] if _FOLDER in file else 0
            folder = folders[index][_PATH][1] if 0 < index < len(folders) else ""
            yield name if not folder or name.startswith("/") else f"{folder}/{name}"

    def _line_entries(self, table: bytes, offset: int) -> tuple[list[dict[int, tuple[int, str]]], int]:
        """Read the folders, or the files, of a line table: content type -> number and text."""
        count, offset = table[offset], offset + 1
        formats = []
        for _each in range(count):
            content, offset = _unsigned(table, offset)
            form, offset = _unsigned(table, offset)
            formats.append((content, form))
        if len(formats) > _MOST_FORMATS:
            raise ValueError(f"{len(formats)} formats of a file name")
        number, offset = _unsigned(table, offset)
        entries = []
        for _each in range(min(number, _MOST_FILES)):
            entry = {}
            for content, form in formats:
                value, offset = _value(table, offset, form, 0)
                entry[content] = value.number, self._line_text(value)
            entries.append(entry)
        return entries, offset

    def _line_text(self, value: _Value) -> str:
        if value.form == _STRING:
            return _text(value.text, 0)
        section = {_STRP: ".debug_str", _LINE_STRP: ".debug_line_str"}.get(value.form)
        return _text(self._elf.get(section), value.number) if section else ""

    def _string(self, unit: _Unit, value: _Value) -> str:
        if value.form in _INDEXED_STRINGS:
            place = unit.bases.get(_STR_OFFSETS_BASE, 8) + 4 * value.number
            (offset,) = struct.unpack_from("<I", self._elf.get(".debug_str_offsets"), place)
            return _text(self._elf.get(".debug_str"), offset)
        return self._line_text(value)

    def _values(self, kind: _Abbreviation, offset: int) -> tuple[dict[int, _Value], int]:
        self._spend(len(kind.attributes))
        values = {}
        for name, form, constant in kind.attributes:
            values[name], offset = _value(self._info, offset, form, constant)
        return values, offset


def _abbreviations(table: bytes, offset: int) -> dict[int, _Abbreviation]:
    known = {}
    end = min(len(table), offset + _LONGEST_ABBREVIATIONS)
    while offset < end:
        code, offset = _unsigned(table, offset)
        if code == 0:
            break
        tag, offset = _unsigned(table, offset)
        children, offset = bool(table[offset]), offset + 1
        attributes = []
        for _attribute in range(_MOST_ATTRIBUTES):
            name, offset = _unsigned(table, offset)
            form, offset = _unsigned(table, offset)
            constant = 0
            if form == _IMPLICIT:
                constant, offset = _unsigned(table, offset)
            if not name and not form:
                break
            attributes.append((name, form, constant))
        sizes = [_FIXED.get(form, -1) for _name, form, _constant in attributes]
        known[code] = _Abbreviation(tag, children, tuple(attributes), -1 if -1 in sizes else sum(sizes))
    return known


def _value(content: bytes, offset: int, form: int, constant: int) -> tuple[_Value, int]:
    """Read one attribute; raise ValueError for a form that DWARF 5 does not know."""
    if form == _IMPLICIT:
        return _Value(form, constant), offset
    if form in _FIXED:
        size = _FIXED[form]
        return _Value(form, int.from_bytes(content[offset : offset + size], "little")), offset + size
    if form in _LEB:
        number, offset = _unsigned(content, offset)
        return _Value(form, number), offset
    if form == _STRING:
        end = content.index(b"\0", offset)
        return _Value(form, 0, content[offset:end]), end + 1
    if form in _BLOCKS:
        size = int.from_bytes(content[offset : offset + _BLOCKS[form]], "little")
        return _Value(form, 0), offset + _BLOCKS[form] + size
    if form in (_BLOCK, _EXPRESSION):
        size, offset = _unsigned(content, offset)
        return _Value(form, 0), offset + size
    raise ValueError(f"a form {form:#x}")


def _unsigned(content: bytes, offset: int) -> tuple[int, int]:
    """Read an unsigned LEB128 number; the sign of a signed one is of no use here."""
    number = shift = 0
    while shift <= 63:
        byte = content[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, offset
        shift += 7
    raise ValueError("a number of more than 64 bits")


def _text(content: bytes, offset: int) -> str:
    return content[offset : offset + _LONGEST_NAME].partition(b"\0")[0].decode("ascii", "replace")
