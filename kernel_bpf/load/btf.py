"""BPF Type Format, read through libbpf: the variables of an object's sections, and what a kernel has.

The constants of a kernel's enums are read without libbpf: three calls for each of 150,000 types take too long.
Layouts and kind numbers: include/uapi/linux/btf.h.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Iterator, Mapping
from ctypes import c_uint32
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from kernel_bpf.load.libbpf import call, libbpf, text
from schedagent.core.errors import BpfError

KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")

_HEADER_BYTES = 12
_INT_SIGNED = 1
_INT_BOOL = 4
_MAGIC = 0xEB9F
_FILE_HEADER = struct.Struct("<HBBIIIII")


class BtfKind(IntEnum):
    """Kinds of BTF types this module looks at."""

    INT = 1
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_WORDS_ONCE: Mapping[int, int] = {BtfKind.INT: 1, BtfKind.ARRAY: 3, BtfKind.VAR: 1, BtfKind.DECL_TAG: 1}
_WORDS_EACH: Mapping[int, int] = {
    BtfKind.STRUCT: 3,
    BtfKind.UNION: 3,
    BtfKind.ENUM: 2,
    BtfKind.FUNC_PROTO: 2,
    BtfKind.DATASEC: 3,
    BtfKind.ENUM64: 3,
}
"""32-bit words that follow the header of a type: once, or for each of its vlen members."""

_MODIFIERS = frozenset({BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG})


class _Type(ctypes.Structure):
    """`struct btf_type`: info holds vlen (bits 0-15) and kind (bits 24-28)."""

    _fields_ = (("name_off", c_uint32), ("info", c_uint32), ("size_or_type", c_uint32))


@dataclass(frozen=True)
class Integer:
    """A C integer type: what it is called last in its chain of typedefs, and what fits.

    Args:
        name: u32, bool and so on, the first typedef met.
        size_bytes: 1, 2, 4 or 8.
        minimum, maximum: the values that fit.
        signed: whether it is.
    """

    name: str
    size_bytes: int
    minimum: int
    maximum: int
    signed: bool


@dataclass(frozen=True)
class Member:
    """Where a member lies in its struct."""

    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Variable:
    """A global variable in a section of a BPF object.

    Args:
        name: C identifier.
        offset, size_bytes: where it lies in the section.
        volatile: declared so; with const it is what a loader may set.
        integer: its type, None if it is no integer.
        struct: name of its type if that is a struct, without a ___suffix; else empty.
        members: of that struct by name; bit fields and members without a name are left out.
    """

    name: str
    offset: int
    size_bytes: int
    volatile: bool
    integer: Integer | None
    struct: str = ""
    members: Mapping[str, Member] = field(default_factory=dict)


class Btf:
    """Type information at a `struct btf *`; as a context manager it frees what `parse` opened."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    @classmethod
    def parse(cls, path: Path) -> Self:
        """Read the BTF of an ELF file or of a raw BTF file; raise BpfError if it holds none."""
        return cls(call("btf__parse", str(path).encode(), None, about=str(path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        libbpf().btf__free(self._pointer)

    def variables(self, section: str) -> dict[str, Variable]:
        """Return the variables of a data section such as .rodata by name; empty if there is no such section."""
        section_id = libbpf().btf__find_by_name_kind(self._pointer, section.encode(), BtfKind.DATASEC)
        if section_id <= 0:
            return {}
        variables = {}
        for type_id, offset, size_bytes in self._words(section_id, words_each=3):
            variable = self._type(type_id)
            volatile, integer, resolved = self._resolve(variable.size_or_type)
            name = self._name(variable)
            struct_name, members = self._struct(resolved)
            variables[name] = Variable(name, offset, size_bytes, volatile, integer, struct_name, members)
        return variables

    def has(self, kind: BtfKind, name: str) -> bool:
        """Whether there is a type, function or variable of this kind and name."""
        type_id: int = libbpf().btf__find_by_name_kind(self._pointer, name.encode(), kind)
        return type_id > 0

    def members(self, struct: str) -> list[str]:
        """Return the names of a struct's members in order; empty if there is no such struct."""
        struct_id = libbpf().btf__find_by_name_kind(self._pointer, struct.encode(), BtfKind.STRUCT)
        if struct_id <= 0:
            return []
        return [self._string(name) for name, _type, _offset in self._words(struct_id, words_each=3)]

    def offsets(self, struct: str) -> dict[str, int]:
        """Return where the members of a struct lie, in bytes; empty if there is no such struct.

        Members without a name, and bit fields, are left out.
        """
        struct_id = libbpf().btf__find_by_name_kind(self._pointer, struct.encode(), BtfKind.STRUCT)
        if struct_id <= 0:
            return {}
        _name, members = self._struct(struct_id)
        return {name: member.offset for name, member in members.items()}

    def named(self, *kinds: BtfKind) -> Iterator[tuple[int, BtfKind, str]]:
        """Yield (id, kind, name) of every type of these kinds."""
        for type_id in range(1, libbpf().btf__type_cnt(self._pointer)):
            described = self._type(type_id)
            kind = _kind(described.info)
            if kind in kinds:
                yield type_id, BtfKind(kind), self._name(described)

    def enumerators(self, enum_id: int) -> list[str]:
        """Return the names of the constants of an ENUM or ENUM64 type."""
        words_each = 2 if _kind(self._type(enum_id).info) == BtfKind.ENUM else 3
        return [self._string(words[0]) for words in self._words(enum_id, words_each)]

    def _struct(self, type_id: int) -> tuple[str, dict[str, Member]]:
        """Return name and members of a struct, both empty for another type."""
        described = self._type(type_id)
        if _kind(described.info) != BtfKind.STRUCT:
            return "", {}
        bit_fields = described.info >> 31
        members = {}
        for name_offset, member_type, bits in self._words(type_id, words_each=3):
            if bit_fields and bits >> 24:
                continue
            size_bytes = libbpf().btf__resolve_size(self._pointer, member_type)
            members[self._string(name_offset)] = Member((bits & 0xFFFFFF if bit_fields else bits) // 8, size_bytes)
        members.pop("", None)
        return self._name(described).partition("___")[0], members

    def _resolve(self, type_id: int) -> tuple[bool, Integer | None, int]:
        """Follow modifiers; return whether volatile was among them, the integer behind them or None, and its type."""
        volatile, name = False, ""
        described = self._type(type_id)
        while (kind := _kind(described.info)) in _MODIFIERS:
            volatile = volatile or kind == BtfKind.VOLATILE
            if kind == BtfKind.TYPEDEF:
                name = name or self._name(described)
            type_id = described.size_or_type
            described = self._type(type_id)
        if kind != BtfKind.INT:
            return volatile, None, type_id
        ((encoding,),) = self._words(type_id, words_each=1, count=1)
        integer = _integer(name or self._name(described), described.size_or_type, encoding >> 24 & 0xF)
        return volatile, integer, type_id

    def _type(self, type_id: int) -> _Type:
        return _Type.from_address(call("btf__type_by_id", self._pointer, type_id, about=f"type {type_id}"))

    def _words(self, type_id: int, words_each: int, count: int = -1) -> Iterator[tuple[int, ...]]:
        """Yield the 32-bit words that follow a type's header, in groups; as many groups as its vlen counts."""
        described = self._type(type_id)
        groups = described.info & 0xFFFF if count < 0 else count
        words = (c_uint32 * (groups * words_each)).from_address(ctypes.addressof(described) + _HEADER_BYTES)
        for start in range(0, len(words), words_each):
            yield tuple(words[start : start + words_each])

    def _name(self, described: _Type) -> str:
        return self._string(described.name_off)

    def _string(self, offset: int) -> str:
        return text(libbpf().btf__name_by_offset(self._pointer, offset))


def _integer(name: str, size_bytes: int, encoding: int) -> Integer:
    """Build the Integer from the encoding bits of BTF_KIND_INT."""
    if encoding & _INT_BOOL:
        return Integer("bool", size_bytes, 0, 1, signed=False)
    bits = size_bytes * 8
    if encoding & _INT_SIGNED:
        return Integer(name, size_bytes, -(1 << bits - 1), (1 << bits - 1) - 1, signed=True)
    return Integer(name, size_bytes, 0, (1 << bits) - 1, signed=False)


def _kind(info: int) -> int:
    """The kind in the info word of a type."""
    return info >> 24 & 0x1F


@functools.cache
def kernel_constants(prefix: str, path: Path = KERNEL_BTF) -> Mapping[str, int]:
    """Return the constants of a kernel's enums whose name starts with `prefix`.

    Args:
        path: a raw BTF file; that of the running kernel unless a test gives another.

    Raises:
        BpfError: it cannot be read, or is no BTF.
    """
    try:
        raw = path.read_bytes()
        magic, _version, _flags, header, types, types_size, strings, strings_size = _FILE_HEADER.unpack_from(raw)
    except (OSError, struct.error) as error:
        raise BpfError(f"{path} cannot be read: {error}") from None
    if magic != _MAGIC:
        raise BpfError(f"{path} is no BTF: it starts with {magic:#x}")
    words = memoryview(raw)[header + types : header + types + types_size].cast("I")
    texts = raw[header + strings : header + strings + strings_size]
    wanted, constants = prefix.encode(), {}
    for name_offset, value in _enum_constants(words):
        if texts.startswith(wanted, name_offset):
            constants[texts[name_offset : texts.index(0, name_offset)].decode()] = value
    return constants


def _enum_constants(words: memoryview) -> Iterator[tuple[int, int]]:
    """Yield (offset of the name, value) of every constant of every enum in the type section of a BTF file."""
    at = 0
    while at < len(words):
        kind, length = _kind(words[at + 1]), words[at + 1] & 0xFFFF
        at += _HEADER_BYTES // 4
        each = _WORDS_EACH.get(kind, 0)
        if kind == BtfKind.ENUM:
            yield from ((words[entry], words[entry + 1]) for entry in range(at, at + 2 * length, 2))
        elif kind == BtfKind.ENUM64:
            for entry in range(at, at + 3 * length, 3):
                yield words[entry], words[entry + 1] | words[entry + 2] << 32
        at += each * length + _WORDS_ONCE.get(kind, 0)
