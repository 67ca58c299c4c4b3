"""BPF Type Format, read through libbpf: the variables of an object's sections, and what a kernel has.

May import: the standard library, kernel_bpf.libbpf and schedagent.core.errors (it also runs inside the micro-VM).
Layouts and kind numbers: include/uapi/linux/btf.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import c_uint32
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from kernel_bpf.libbpf import call, libbpf, text

_HEADER_BYTES = 12
_INT_SIGNED = 1
_INT_BOOL = 4


class Kind(IntEnum):
    """Kinds of BTF types this module looks at."""

    INT = 1
    STRUCT = 4
    ENUM = 6
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    VAR = 14
    DATASEC = 15
    TYPE_TAG = 18
    ENUM64 = 19


_MODIFIERS = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})


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
class Variable:
    """A global variable in a section of a BPF object.

    Args:
        name: C identifier.
        offset, size_bytes: where it lies in the section.
        volatile: declared so; with const it is what a loader may set.
        integer: its type, None if it is no integer.
    """

    name: str
    offset: int
    size_bytes: int
    volatile: bool
    integer: Integer | None


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
        section_id = libbpf().btf__find_by_name_kind(self._pointer, section.encode(), Kind.DATASEC)
        if section_id <= 0:
            return {}
        found = {}
        for type_id, offset, size_bytes in self._words(section_id, words_each=3):
            variable = self._type(type_id)
            volatile, integer = self._resolve(variable.size_or_type)
            name = self._name(variable)
            found[name] = Variable(name, offset, size_bytes, volatile, integer)
        return found

    def members(self, struct: str) -> list[str]:
        """Return the names of a struct's members in order; empty if there is no such struct."""
        struct_id = libbpf().btf__find_by_name_kind(self._pointer, struct.encode(), Kind.STRUCT)
        if struct_id <= 0:
            return []
        return [self._string(name) for name, _type, _offset in self._words(struct_id, words_each=3)]

    def member_offset(self, struct: str, member: str) -> int | None:
        """Return where a member lies in a struct, in bytes; None if there is no such struct or member."""
        struct_id = libbpf().btf__find_by_name_kind(self._pointer, struct.encode(), Kind.STRUCT)
        if struct_id <= 0:
            return None
        offsets = {self._string(name): bits // 8 for name, _type, bits in self._words(struct_id, words_each=3)}
        return offsets.get(member)

    def named(self, *kinds: Kind) -> Iterator[tuple[int, Kind, str]]:
        """Yield (id, kind, name) of every type of these kinds."""
        for type_id in range(1, libbpf().btf__type_cnt(self._pointer)):
            described = self._type(type_id)
            kind = described.info >> 24 & 0x1F
            if kind in kinds:
                yield type_id, Kind(kind), self._name(described)

    def enumerators(self, enum_id: int) -> list[str]:
        """Return the names of the constants of an ENUM or ENUM64 type."""
        words_each = 2 if self._type(enum_id).info >> 24 & 0x1F == Kind.ENUM else 3
        return [self._string(words[0]) for words in self._words(enum_id, words_each)]

    def _resolve(self, type_id: int) -> tuple[bool, Integer | None]:
        """Follow modifiers down to an integer; return whether volatile was among them, and the integer or None."""
        volatile, name = False, ""
        described = self._type(type_id)
        while (kind := described.info >> 24 & 0x1F) in _MODIFIERS:
            volatile = volatile or kind == Kind.VOLATILE
            if kind == Kind.TYPEDEF:
                name = name or self._name(described)
            type_id = described.size_or_type
            described = self._type(type_id)
        if kind != Kind.INT:
            return volatile, None
        ((encoding,),) = self._words(type_id, words_each=1, count=1)
        return volatile, _integer(name or self._name(described), described.size_or_type, encoding >> 24 & 0xF)

    def _type(self, type_id: int) -> _Type:
        return _Type.from_address(call("btf__type_by_id", self._pointer, type_id, about=f"type {type_id}"))

    def _words(self, type_id: int, words_each: int, count: int = -1) -> Iterator[tuple[int, ...]]:
        """Yield the 32-bit words that follow a type's header, in groups; as many groups as its vlen says."""
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
