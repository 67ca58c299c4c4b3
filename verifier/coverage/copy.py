"""The copy of a compiled policy whose probes store into a map: the same ELF file, its code sections written again.

Source of the layouts: Documentation/bpf/standardization/instruction-set.rst, Documentation/bpf/llvm_reloc.rst,
bpf_object__elf_collect() and bpf_program__record_reloc() in tools/lib/bpf/libbpf.c, struct btf_ext_header there.
New contents are put behind the old file, and a new section table behind them, so nothing else moves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from verifier.coverage.probes import Probe, Probes, Side, Unmeasurable
from verifier.object.elf import ElfObject, RelocationType, Section, SectionType, Symbol, SymbolType, read_elf
from verifier.object.instructions import CALL, LD_IMM64, PSEUDO_CALL, SLOT_BYTES
from verifier.object.reader import function_symbols

COVERAGE_SECTION = ".data.coverage"
"""The section, and map, of one byte for each probe: 1 once it was passed."""

_SYMBOL_NAME = "schedagent_coverage"
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_SLOT = struct.Struct("<BBhi")
_EXT_HEADER = struct.Struct("<HBBI")
_WRITE_ALLOC, _GLOBAL_OBJECT = 3, 0x11
_STORE_BYTE = 0x72  # BPF_ST | BPF_MEM | BPF_B
_JUMP, _LONG_JUMP = 0x05, 0x06
_JUMP_CLASSES, _CALL_BITS, _EXIT_BITS = (5, 6), 0x80, 0x90
_PROBE_SLOTS = 3
_OFFSETS = range(-(1 << 15), 1 << 15)


@dataclass
class _Layout:
    """Where the slots of one code section went.

    Args:
        entry: old slot -> new slot that a call to a function beginning there enters.
        body: old slot -> new slot of the instruction itself; one more than there are, for the end.
        code: the new slots.
        loads: new slots of ld_imm64 that need the map's address.
        stubs: old slot of a branch -> new slot that a taken branch jumps to.
    """

    entry: dict[int, int] = field(default_factory=dict)
    body: dict[int, int] = field(default_factory=dict)
    code: list[bytes] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)
    stubs: dict[int, int] = field(default_factory=dict)

    def start(self, slot: int) -> int:
        """Where what referred to a slot from outside its function finds it."""
        return self.entry.get(slot, self.body[slot])


def with_probes(object_bytes: bytes, probes: Probes) -> bytes:
    """Return the copy of an object in which each probe stores 1 into its byte of COVERAGE_SECTION.

    Raises:
        Unmeasurable: a jump would have to reach too far.
    """
    elf = read_elf(object_bytes)
    symbols = function_symbols(elf)
    code_sections = [section for section in elf.sections if section.executable and section.size]
    layouts = {section.index: _lay_out(section, symbols, probes) for section in code_sections}
    writer = _Writer(object_bytes)
    for section in code_sections:
        layout = layouts[section.index]
        writer.contents[section.index] = b"".join(_patched(section, elf, layout, layouts))
    writer.add_map(len(probes.probes))
    writer.move_symbols(elf, layouts)
    for section in code_sections:
        writer.relocate(elf, section, layouts[section.index])
    extra = elf.find(".BTF.ext")
    if extra:
        writer.contents[extra.index] = _moved_records(extra.content, elf, layouts)
    return writer.file()


@dataclass(frozen=True)
class _Arrivals:
    """The probes of one section, by old slot.

    Args:
        entries: of functions that begin there.
        taken: of branches that lead there, with the slot of each branch.
        behind: of the branch that is there, if it is not taken.
    """

    entries: dict[int, Probe] = field(default_factory=dict)
    taken: dict[int, list[tuple[int, Probe]]] = field(default_factory=dict)
    behind: dict[int, Probe] = field(default_factory=dict)


def _arrivals(section: Section, symbols: Mapping[str, Symbol], probes: Probes) -> _Arrivals:
    arrivals = _Arrivals()
    for name, symbol in symbols.items():
        base, ops = symbol.value // SLOT_BYTES, probes.codes[name].ops
        for probe in probes.of(name) if symbol.section == section.index else ():
            branch = base + ops[probe.index].raw.slot
            if probe.side is Side.ENTRY:
                arrivals.entries[base] = probe
            elif probe.side is Side.TAKEN:
                arrivals.taken.setdefault(base + ops[probe.target].raw.slot, []).append((branch, probe))
            else:
                arrivals.behind[branch] = probe
    return arrivals


def _lay_out(section: Section, symbols: Mapping[str, Symbol], probes: Probes) -> _Layout:
    """Place the old slots of a section, and the probes between them."""
    layout, arrivals = _Layout(), _arrivals(section, symbols, probes)
    numbers = {probe: number for number, probe in enumerate(probes.probes)}
    wide, falls = False, False
    for slot, (raw,) in enumerate(struct.iter_unpack(f"{SLOT_BYTES}s", section.content)):
        if not wide:
            if slot in arrivals.entries:
                layout.entry[slot] = len(layout.code)
                _store(layout, arrivals.entries[slot], numbers)
                falls = True
            _add_stubs(layout, arrivals.taken.get(slot, []), numbers, falls=falls)
        layout.body[slot] = len(layout.code)
        layout.code.append(raw)
        falls, wide = not _leaves(raw[0]), raw[0] == LD_IMM64 and not wide
        if slot in arrivals.behind:
            _store(layout, arrivals.behind[slot], numbers)
    layout.body[len(section.content) // SLOT_BYTES] = len(layout.code)
    return layout


def _add_stubs(layout: _Layout, taken: list[tuple[int, Probe]], numbers: Mapping[Probe, int], *, falls: bool) -> None:
    """Emit the probes of the branches that lead to the next slot; what falls into it jumps over them."""
    if taken and falls:
        layout.code.append(_jump(len(taken) * (_PROBE_SLOTS + 1) - 1))
    for left, (branch, probe) in zip(range(len(taken) - 1, -1, -1), taken, strict=True):
        layout.stubs[branch] = len(layout.code)
        _store(layout, probe, numbers)
        if left:
            layout.code.append(_jump(left * (_PROBE_SLOTS + 1) - 1))


def _store(layout: _Layout, probe: Probe, numbers: Mapping[Probe, int]) -> None:
    """Emit one probe: the map's address into a free register, and a byte behind it set."""
    layout.loads.append(len(layout.code))
    layout.code.append(_SLOT.pack(LD_IMM64, probe.register, 0, 0))
    layout.code.append(_SLOT.pack(0, 0, 0, 0))
    layout.code.append(_SLOT.pack(_STORE_BYTE, probe.register, numbers[probe], 1))


def _jump(distance: int) -> bytes:
    if distance not in _OFFSETS:
        raise Unmeasurable(f"a jump over {distance} slots is too far")
    return _SLOT.pack(_JUMP, 0, distance, 0)


def _leaves(opcode: int) -> bool:
    """Whether the next slot is not reached from an instruction: a jump always taken, or the end of a function."""
    return opcode in (_JUMP, _LONG_JUMP) or opcode == _EXIT_BITS | 5


def _patched(section: Section, elf: ElfObject, layout: _Layout, layouts: Mapping[int, _Layout]) -> Iterator[bytes]:
    """Yield the new slots, with jumps and calls that lead to where their targets went."""
    new = list(layout.code)
    relocations = elf.relocations.get(section.index, {})
    slot = 0
    while slot * SLOT_BYTES < len(section.content):
        at = layout.body[slot]
        opcode, registers, offset, imm = _SLOT.unpack(new[at])
        relocation = relocations.get(slot * SLOT_BYTES)
        if opcode & 7 in _JUMP_CLASSES and opcode & 0xF0 not in (_CALL_BITS, _EXIT_BITS):
            distance = imm if opcode == _LONG_JUMP else offset
            target = slot + 1 + distance
            landing = layout.stubs.get(slot, layout.body[target]) - at - 1
            if opcode == _LONG_JUMP:
                imm = landing
            elif landing in _OFFSETS:
                offset = landing
            else:
                raise Unmeasurable(f"a branch over {landing} slots is too far")
        elif opcode == CALL and registers >> 4 == PSEUDO_CALL:
            if relocation is None:
                imm = layout.start(slot + 1 + imm) - at - 1
            elif relocation.symbol.section in layouts:
                imm = _moved(relocation.symbol, (imm + 1) * SLOT_BYTES, layouts) // SLOT_BYTES - 1
        elif opcode == LD_IMM64 and relocation and relocation.symbol.section in layouts:
            imm = _moved(relocation.symbol, imm, layouts)
        new[at] = _SLOT.pack(opcode, registers, offset, imm)
        slot += 2 if opcode == LD_IMM64 else 1
    yield from new


def _moved(symbol: Symbol, addend: int, layouts: Mapping[int, _Layout]) -> int:
    """The addend, in bytes, that refers to the same function once its section was written again."""
    layout = layouts[symbol.section]
    target = layout.start((symbol.value + addend) // SLOT_BYTES)
    return (target - _place(symbol, layout)) * SLOT_BYTES


def _place(symbol: Symbol, layout: _Layout) -> int:
    """The new slot of a symbol in a code section; a section's own symbol stays at its start."""
    return 0 if symbol.type == SymbolType.SECTION else layout.start(symbol.value // SLOT_BYTES)


def _moved_records(content: bytes, elf: ElfObject, layouts: Mapping[int, _Layout]) -> bytes:
    """Return .BTF.ext with the byte offsets of its records moved."""
    new = bytearray(content)
    by_name = {section.name: layouts[section.index] for section in elf.sections if section.index in layouts}
    types = elf.find(".BTF")
    assert types is not None, "an image was read from the object"
    strings = _strings(types.content)
    header_size = _EXT_HEADER.unpack_from(content)[3]
    pairs = struct.unpack_from(f"<{(header_size - _EXT_HEADER.size) // 4}I", content, _EXT_HEADER.size)[:6]
    for kind, (start, size) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
        at, end = header_size + start, header_size + start + size
        if not size:
            continue
        (record_size,) = struct.unpack_from("<I", content, at)
        at += 4
        while at < end:
            name, count = struct.unpack_from("<II", content, at)
            layout = by_name.get(strings[name : strings.index(b"\0", name)].decode())
            at += 8
            for record in range(at, at + count * record_size, record_size):
                (place,) = struct.unpack_from("<I", content, record)
                if layout:
                    slot = place // SLOT_BYTES
                    moved = layout.body[slot] if kind == 2 else layout.start(slot)
                    struct.pack_into("<I", new, record, moved * SLOT_BYTES)
            at += count * record_size
    return bytes(new)


def _strings(btf: bytes) -> bytes:
    """The string table of a .BTF section (struct btf_header in include/uapi/linux/btf.h)."""
    _magic, _version, _flags, header, _types, _size, offset, size = struct.unpack_from("<HBBIIIII", btf)
    return btf[header + offset : header + offset + size]


class _Writer:
    """Puts the new contents behind the old file."""

    def __init__(self, object_bytes: bytes) -> None:
        self._file = bytes(object_bytes)
        header = _ELF_HEADER.unpack_from(self._file)
        table, count, self._names = header[6], header[12], header[13]
        self._headers = [
            list(fields)
            for fields in _SECTION_HEADER.iter_unpack(self._file[table : table + count * _SECTION_HEADER.size])
        ]
        self.contents: dict[int, bytes] = {}
        self._symbol = 0

    def _content(self, index: int) -> bytes:
        if index in self.contents:
            return self.contents[index]
        offset, size = self._headers[index][4:6]
        return self._file[offset : offset + size]

    def _add_name(self, index: int, name: str) -> int:
        """Append a name to a string table; return its place."""
        table = self._content(index)
        self.contents[index] = table + name.encode() + b"\0"
        return len(table)

    def _add_section(self, name: str, content: bytes, kind: int, flags: int, link: int, info: int, entry: int) -> int:
        place = self._add_name(self._names, name)
        self._headers.append([place, kind, flags, 0, 0, len(content), link, info, 8, entry])
        self.contents[len(self._headers) - 1] = content
        return len(self._headers) - 1

    @property
    def _symbols(self) -> int:
        return next(index for index, fields in enumerate(self._headers) if fields[1] == SectionType.SYMTAB)

    def add_map(self, size: int) -> None:
        """Add the section of the probes' bytes, and the symbol that their loads name."""
        section = self._add_section(COVERAGE_SECTION, bytes(size), SectionType.PROGBITS, _WRITE_ALLOC, 0, 0, 0)
        names = self._headers[self._symbols][6]
        symbols = self._content(self._symbols)
        self._symbol = len(symbols) // _SYMBOL.size
        name = self._add_name(names, _SYMBOL_NAME)
        self.contents[self._symbols] = symbols + _SYMBOL.pack(name, _GLOBAL_OBJECT, 0, section, 0, size)

    def move_symbols(self, elf: ElfObject, layouts: Mapping[int, _Layout]) -> None:
        """Let the symbols of code point to where it went."""
        table = bytearray(self._content(self._symbols))
        for number, symbol in enumerate(elf.symbols):
            layout = layouts.get(symbol.section)
            if layout is None or symbol.type == SymbolType.SECTION or symbol.value % SLOT_BYTES:
                continue
            start = _place(symbol, layout)
            fields = list(_SYMBOL.unpack_from(table, number * _SYMBOL.size))
            fields[4] = start * SLOT_BYTES
            if symbol.type == SymbolType.FUNC:
                end = (symbol.value + symbol.size) // SLOT_BYTES
                fields[5] = (layout.start(end) - start) * SLOT_BYTES
            _SYMBOL.pack_into(table, number * _SYMBOL.size, *fields)
        self.contents[self._symbols] = bytes(table)

    def relocate(self, elf: ElfObject, section: Section, layout: _Layout) -> None:
        """Move the relocations of a code section, and add those of its probes."""
        loads = [
            _RELOCATION.pack(slot * SLOT_BYTES, self._symbol << 32 | RelocationType.LD_IMM64) for slot in layout.loads
        ]
        old = next((each for each in elf.sections if each.type == SectionType.REL and each.info == section.index), None)
        if old is None:
            self._add_section(
                f".rel{section.name}", b"".join(loads), SectionType.REL, 0, self._symbols, section.index, 16
            )
            return
        moved = [
            _RELOCATION.pack(layout.body[offset // SLOT_BYTES] * SLOT_BYTES, info)
            for offset, info in _RELOCATION.iter_unpack(old.content)
        ]
        self.contents[old.index] = b"".join([*moved, *loads])

    def file(self) -> bytes:
        """The old file, the new contents, and the new section table."""
        parts, size = [self._file], len(self._file)
        for index, content in sorted(self.contents.items()):
            padding = -size % 16
            parts += [bytes(padding), content]
            self._headers[index][4:6] = [size + padding, len(content)]
            size += padding + len(content)
        padding = -size % 8
        table = b"".join(_SECTION_HEADER.pack(*fields) for fields in self._headers)
        header = list(_ELF_HEADER.unpack_from(self._file))
        header[6], header[12] = size + padding, len(self._headers)
        whole = b"".join([*parts, bytes(padding), table])
        return _ELF_HEADER.pack(*header) + whole[_ELF_HEADER.size :]
