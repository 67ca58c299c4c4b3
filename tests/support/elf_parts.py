"""Builds BPF objects byte by byte, right or wrong: `Parts.sound()` is a whole policy, tests break one part of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PROGBITS, SYMTAB, STRTAB, NOBITS, REL = 1, 2, 3, 8, 9
WRITE, ALLOC, EXEC = 1, 2, 4
LOCAL, GLOBAL, WEAK = 0, 1, 2
NOTYPE, OBJECT, FUNC, SECTION = 0, 1, 2, 3
R_LD_IMM64, R_ABS64, R_CALL = 1, 2, 10
INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST = 1, 2, 3, 4, 5, 6, 8, 9, 10
BTF_FUNC, PROTO, VAR, DATASEC, ENUM64 = 12, 13, 14, 15, 19


def insn(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, dst | src << 4, offset, imm)


def ld_imm64(dst: int = 1, value: int = 0, src: int = 0) -> bytes:
    return struct.pack("<BBhIBBhI", 0x18, dst | src << 4, 0, value & 0xFFFFFFFF, 0, 0, 0, value >> 32)


EXIT = insn(0x95)
CALL_SYMBOL = insn(0x85, src=1, imm=-1)


class BtfParts:
    """Types and strings of a .BTF section, in the order they are added; type numbers begin with 1."""

    def __init__(self) -> None:
        self.strings = bytearray(b"\0")
        self.types: list[bytes] = []
        self.header = {"magic": 0xEB9F, "version": 1}

    def string(self, text: str | bytes) -> int:
        raw = (text.encode() if isinstance(text, str) else text) + b"\0"
        if raw == b"\0":
            return 0
        at = self.strings.find(b"\0" + raw)
        if at >= 0:
            return at + 1
        self.strings += raw
        return len(self.strings) - len(raw)

    def add(self, kind: int, name: str | bytes = "", target: int = 0, words=(), vlen: int = 0, flag: int = 0) -> int:
        header = struct.pack("<III", self.string(name), flag << 31 | kind << 24 | vlen, target)
        self.types.append(header + struct.pack(f"<{len(words)}I", *words))
        return len(self.types)

    def struct(self, name: str, size: int, members: list[tuple[str, int, int]]) -> int:
        words = [word for text, type_id, bits in members for word in (self.string(text), type_id, bits)]
        return self.add(STRUCT, name, size, words, len(members))

    def array(self, element: int, length: int) -> int:
        return self.add(ARRAY, words=(element, element, length))

    def function(self, name: str, parameters: dict[str, int], linkage: int = 1) -> int:
        words = [word for text, type_id in parameters.items() for word in (self.string(text), type_id)]
        prototype = self.add(PROTO, words=words, vlen=len(parameters))
        return self.add(BTF_FUNC, name, prototype, vlen=linkage)

    def variable(self, name: str, type_id: int, linkage: int = 1) -> int:
        return self.add(VAR, name, type_id, (linkage,))

    def datasec(self, name: str, size: int, places: list[tuple[int, int, int]]) -> int:
        return self.add(DATASEC, name, size, [word for place in places for word in place], len(places))

    def build(self) -> bytes:
        types = b"".join(self.types)
        places = struct.pack("<IIII", 0, len(types), len(types), len(self.strings))
        header = struct.pack("<HBBI", self.header["magic"], self.header["version"], 0, 24)
        return header + places + types + bytes(self.strings)


def ext(functions: bytes = b"", lines: bytes = b"", core: bytes = b"") -> bytes:
    """A .BTF.ext section of three finished parts."""
    at = len(functions), len(functions) + len(lines)
    places = struct.pack("<6I", 0, len(functions), at[0], len(lines), at[1], len(core))
    return struct.pack("<HBBI", 0xEB9F, 1, 0, 32) + places + functions + lines + core


def records(size: int, sections: list[tuple[int, list[tuple[int, ...]]]], count: int | None = None) -> bytes:
    """One part of .BTF.ext: (name offset, records) per section."""
    parts = [struct.pack("<I", size)]
    for name, rows in sections:
        parts.append(struct.pack("<II", name, len(rows) if count is None else count))
        parts += [struct.pack(f"<{len(row)}I", *row) for row in rows]
    return b"".join(parts)


@dataclass
class Part:
    """One section; size is what its header says, offset where the header says it lies (None: the truth)."""

    type: int = PROGBITS
    flags: int = 0
    content: bytes = b""
    info: str | int = 0
    link: str | int = 0
    size: int | None = None
    offset: int | None = None


@dataclass
class Named:
    """One symbol; its section by name, empty if it is undefined, or by number."""

    name: str | bytes
    section: str | int = ""
    value: int = 0
    size: int = 0
    type: int = NOTYPE
    bind: int = GLOBAL


@dataclass
class Parts:
    """An object as lists; `relocations` are (offset, symbol's name or index, type) by section."""

    sections: dict[str, Part] = field(default_factory=dict)
    symbols: list[Named] = field(default_factory=list)
    relocations: dict[str, list[tuple[int, str | int, int]]] = field(default_factory=dict)
    btf: BtfParts = field(default_factory=BtfParts)
    header: dict[str, int] = field(default_factory=dict)

    def symbol(self, name: str) -> Named:
        return next(symbol for symbol in self.symbols if symbol.name == name)

    def program(self, name: str, section: str, code: bytes) -> None:
        self.sections[section] = Part(PROGBITS, ALLOC | EXEC, code)
        self.symbols.append(Named(name, section, 0, len(code), FUNC))

    def build(self) -> bytes:
        sections = {"": Part(0), **self.sections}
        sections.setdefault(".BTF", Part(content=self.btf.build()))
        indexes = {symbol.name: number for number, symbol in enumerate(self.symbols, start=1)}
        for target, rows in self.relocations.items():
            content = b"".join(
                struct.pack("<QII", offset, kind, symbol if isinstance(symbol, int) else indexes[symbol])
                for offset, symbol, kind in rows
            )
            sections.setdefault(f".rel{target}", Part(REL, 0, content, info=target, link=".symtab"))
        sections.setdefault(".symtab", Part(SYMTAB, link=".strtab"))
        sections.setdefault(".strtab", Part(STRTAB))
        names = list(sections)
        strings = bytearray(b"\0")
        table = [bytes(24)] + [self._symbol(symbol, names, strings) for symbol in self.symbols]
        if not sections[".symtab"].content:
            sections[".symtab"].content = b"".join(table)
        places = [_add(strings, name) for name in names]
        if not sections[".strtab"].content:
            sections[".strtab"].content = bytes(strings)
        return self._file(sections, names, places)

    def _symbol(self, symbol: Named, names: list[str], strings: bytearray) -> bytes:
        section = symbol.section if isinstance(symbol.section, int) else names.index(symbol.section)
        kind = symbol.bind << 4 | symbol.type
        return struct.pack("<IBBHQQ", _add(strings, symbol.name), kind, 0, section, symbol.value, symbol.size)

    def _file(self, sections: dict[str, Part], names: list[str], places: list[int]) -> bytes:
        body, headers = bytearray(64), []
        for name, place in zip(names, places, strict=True):
            part = sections[name]
            body += bytes(-len(body) % 8)
            offset = len(body) if part.offset is None else part.offset
            size = len(part.content) if part.size is None else part.size
            link, info = (_number(value, names) for value in (part.link, part.info))
            entry = {SYMTAB: 24, REL: 16}.get(part.type, 0)
            headers.append(
                struct.pack("<IIQQQQIIQQ", place, part.type, part.flags, 0, offset, size, link, info, 8, entry)
            )
            if part.type != NOBITS:
                body += part.content
        body += bytes(-len(body) % 8)
        told = {
            "identity": b"\x7fELF\x02\x01\x01",
            "kind": 1,
            "machine": 247,
            "table": len(body),
            "entry": 64,
            "count": len(names),
            "names": names.index(".strtab"),
            **self.header,
        }
        body[:64] = struct.pack(
            "<16sHHIQQQIHHHHHH",
            *(told["identity"], told["kind"], told["machine"], 1, 0, 0, told["table"], 0),
            *(64, 0, 0, told["entry"], told["count"], told["names"]),
        )
        return bytes(body) + b"".join(headers)

    @classmethod
    def sound(cls) -> Parts:
        """A whole policy: enqueue looks a map up, calls a kfunc and a subprogram; init is empty."""
        parts = cls()
        code = ld_imm64() + insn(0x85, imm=1) + ld_imm64() + CALL_SYMBOL + CALL_SYMBOL + EXIT
        parts.program("p_enqueue", "struct_ops/p_enqueue", code)
        parts.program("p_init", "struct_ops.s/p_init", insn(0xB7) + EXIT)
        parts.program("other", ".text", insn(0xB7) + EXIT)
        parts.sections["license"] = Part(content=b"GPL\0")
        parts.sections[".rodata"] = Part(content=struct.pack("<QQ", 5000, 7))
        parts.sections[".bss"] = Part(NOBITS, size=8)
        parts.sections[".maps"] = Part(content=bytes(32))
        parts.sections[".struct_ops.link"] = Part(
            content=bytes(16) + struct.pack("<Qi4x", 2, -5) + b"tiny".ljust(16, b"\0")
        )
        parts.symbols += [
            Named("slice_us", ".rodata", 0, 8, OBJECT),
            Named("count", ".bss", 0, 8, OBJECT),
            Named("table", ".maps", 0, 32, OBJECT),
            Named("policy", ".struct_ops.link", 0, 48, OBJECT),
            Named("scx_bpf_now___sa", bind=WEAK),
        ]
        parts.relocations["struct_ops/p_enqueue"] = [
            (0, "table", R_LD_IMM64),
            (24, "slice_us", R_LD_IMM64),
            (40, "scx_bpf_now___sa", R_CALL),
            (48, "other", R_CALL),
        ]
        parts.relocations[".struct_ops.link"] = [(0, "p_enqueue", R_ABS64), (8, "p_init", R_ABS64)]
        _add_types(parts.btf)
        return parts


def _add_types(btf: BtfParts) -> None:
    """The types of `Parts.sound()`."""
    number = btf.add(INT, "u64", 8, (64,))
    signed = btf.add(INT, "int", 4, (1 << 24 | 32,))
    volatile = btf.add(CONST, target=btf.add(VOLATILE, target=number))
    pointer = btf.add(PTR, target=number)
    members = [("type", _uint(btf, 1)), ("key", pointer), ("value", pointer), ("max_entries", _uint(btf, 16))]
    table = btf.struct("", 32, [(name, type_id, 64 * place) for place, (name, type_id) in enumerate(members)])
    name = btf.array(btf.add(INT, "char", 1, (8,)), 16)
    fields = [("enqueue", pointer), ("init", pointer), ("flags", number), ("bias", signed)]
    places = [(text, type_id, 64 * place) for place, (text, type_id) in enumerate(fields)]
    ops = btf.struct("sched_ext_ops", 48, [*places, ("name", name, 256)])
    kfunc = btf.function("scx_bpf_now___sa", {}, linkage=2)
    btf.datasec(".rodata", 16, [(btf.variable("slice_us", volatile), 0, 8), (btf.variable("hidden", number, 0), 8, 8)])
    btf.datasec(".bss", 8, [(btf.variable("count", number), 0, 8)])
    btf.datasec(".maps", 32, [(btf.variable("table", table), 0, 32)])
    btf.datasec(".struct_ops.link", 48, [(btf.variable("policy", ops), 0, 48)])
    btf.datasec(".ksyms", 0, [(kfunc, 0, 0)])
    btf.add(ENUM, "scx_flags___x", 4, (btf.string("SCX_A___x"), 1), 1)
    btf.add(ENUM, "scx_flags", 4, (btf.string("SCX_A"), 3, btf.string("SCX_B"), 0xFFFFFFFF), 2, flag=1)
    btf.add(ENUM64, "scx_dsq", 8, (btf.string("SCX_LOCAL"), 2, 1 << 31), 1)


def _uint(btf: BtfParts, value: int) -> int:
    return btf.add(PTR, target=btf.array(1, value))


def _add(strings: bytearray, name: str | bytes) -> int:
    raw = name.encode() if isinstance(name, str) else name
    if not raw:
        return 0
    strings += raw + b"\0"
    return len(strings) - len(raw) - 1


def _number(value: str | int, names: list[str]) -> int:
    return value if isinstance(value, int) else names.index(value)
