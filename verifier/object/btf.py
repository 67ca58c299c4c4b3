"""BTF, the types that a BPF object brings along, read from bytes that nobody vouches for.

Types are decoded when they are asked for, so a large . BTF section costs four bytes per type. Every walk along types is
bounded: in hostile BTF a typedef can be its own type. kernel_bpf.load.btf reads trusted BTF, through libbpf.
Layouts: include/uapi/linux/btf.h, Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from verifier.object.elf import malformed, read_name

TYPE_LIMIT = 1 << 18
"""Most types that are looked at; the BTF of a whole kernel has about 150 000."""

ENUMERATOR_LIMIT = 1 << 14
LOOKUP_LIMIT = 1 << 17
"""How often types may be asked for, about 0.5 s of work. The largest bundled policy asks 450 times; many relocations
that each follow long chains of types could ask for hours."""

DEPTH_LIMIT = 32
"""Most modifiers, typedefs and arrays in a row; MAX_RESOLVE_DEPTH in kernel/bpf/btf.c."""

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_TYPE = struct.Struct("<III")
_WORD_BYTES = 4
_TO_PRINTABLE = bytes(byte if 32 <= byte < 127 else b" ?"[byte >= 128] for byte in range(256))
"""A blank for control characters, a question mark for each byte that is no ASCII."""

_WORD_LIMIT = 1 << 32


class BtfKind(IntEnum):
    """BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_MODIFIERS = frozenset({BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG})
_ENUMS = frozenset({BtfKind.ENUM, BtfKind.ENUM64})
_SIZED = frozenset({BtfKind.INT, BtfKind.STRUCT, BtfKind.UNION, BtfKind.ENUM, BtfKind.ENUM64, BtfKind.FLOAT})

_POINTER_BYTES = 8
_TRAILING_WORDS = {BtfKind.INT: 1, BtfKind.ARRAY: 3, BtfKind.VAR: 1, BtfKind.DECL_TAG: 1}
_WORDS_PER_MEMBER = {
    BtfKind.STRUCT: 3,
    BtfKind.UNION: 3,
    BtfKind.ENUM: 2,
    BtfKind.ENUM64: 3,
    BtfKind.FUNC_PROTO: 2,
    BtfKind.DATASEC: 3,
}


@dataclass(frozen=True)
class Type:
    """One type.

    Args:
        id: its number.
        name: empty if it has none.
        flag: kind_flag: bit fields for STRUCT and UNION, signed values for ENUM and ENUM64.
        target: the type it refers to, or its size in bytes, as its kind has it.
        types, start: where its members, parameters, values or variables are; decoded when they are asked for, as a
            hostile object can ask for one large type many times.
        each, length: 32-bit words of one of them, and their number.
    """

    id: int
    kind: BtfKind
    name: str
    flag: bool
    target: int
    types: bytes = field(repr=False)
    start: int
    each: int
    length: int

    def group(self, index: int) -> tuple[int, ...]:
        """Return the words of one member, parameter, value or variable; raise PolicyError if there is none."""
        if index >= self.length:
            raise malformed(f"part {index} of type {self.id}, a {self.kind.name} with {self.length}")
        return struct.unpack_from(f"<{self.each}I", self.types, self.start + index * self.each * _WORD_BYTES)

    def groups(self) -> Iterator[tuple[int, ...]]:
        """Yield the words of each."""
        return map(self.group, range(self.length))


@dataclass(frozen=True)
class Member:
    """A member of a struct or union, or a parameter; bit_offset is 0 for a parameter."""

    name: str
    type_id: int
    bit_offset: int


@dataclass(frozen=True)
class Placed:
    """A variable or function that a DATASEC lists.

    Args:
        static: whether the name is known to this object only.
    """

    name: str
    kind: BtfKind
    type_id: int
    offset: int
    size: int
    static: bool


class Btf:
    """The types of one object, by number; type 0 is void."""

    def __init__(self, offsets: array[int], types: bytes, strings: bytes) -> None:
        self._offsets = offsets
        self._types = types
        self._strings = strings
        self._lookups = 0

    def type(self, type_id: int) -> Type:
        """Return a type; raise PolicyError if there is none of this number, its name is no name, or it is too much."""
        self._lookups += 1
        if self._lookups > LOOKUP_LIMIT:
            raise malformed(f"its types refer to each other so much that {LOOKUP_LIMIT} steps did not suffice")
        if type_id == 0:
            return Type(0, BtfKind.VOID, "", False, 0, b"", 0, 0, 0)
        if type_id > len(self._offsets):
            raise malformed(f"type {type_id} is asked for, there are {len(self._offsets)}")
        offset = self._offsets[type_id - 1]
        name, info, target = _TYPE.unpack_from(self._types, offset)
        kind, each, length = _shape(info)
        return Type(
            type_id, kind, self.name(name), bool(info >> 31), target, self._types, offset + _TYPE.size, each, length
        )

    def of_kind(self, *kinds: BtfKind) -> Iterator[Type]:
        """Yield the types of some kinds in order."""
        for type_id, offset in enumerate(self._offsets, start=1):
            if self._types[offset + 7] & 0x1F in kinds:
                yield self.type(type_id)

    def name(self, offset: int) -> str:
        """Return a name; raise PolicyError if it is too long or not printable."""
        return read_name(self._strings, offset, "a type") if offset else ""

    def text(self, offset: int, limit: int) -> str:
        """Return any string, such as a source line, cut at `limit` bytes, made printable ASCII."""
        raw = self._strings[offset : offset + limit].partition(b"\0")[0] if offset else b""
        return raw.translate(_TO_PRINTABLE).decode("ascii")

    def resolve(self, type_id: int) -> Type:
        """Follow typedefs and qualifiers to what a type is."""
        return self.chain(type_id)[-1]

    def chain(self, type_id: int) -> list[Type]:
        """Return a type, what it refers to, and so on, up to the first that is no typedef or qualifier."""
        types = [self.type(type_id)]
        while types[-1].kind in _MODIFIERS:
            if len(types) > DEPTH_LIMIT:
                raise malformed(f"type {type_id} is a chain of more than {DEPTH_LIMIT} types")
            types.append(self.type(types[-1].target))
        return types

    def name_of(self, type_id: int) -> str:
        """Return the first name in a type's chain: of a typedef, else of the struct or enum itself."""
        return next((described.name for described in self.chain(type_id) if _is_named(described)), "")

    def is_volatile(self, type_id: int) -> bool:
        """Whether a type, or what it is an array of, is volatile."""
        for _depth in range(DEPTH_LIMIT):
            chain = self.chain(type_id)
            if any(described.kind is BtfKind.VOLATILE for described in chain):
                return True
            if chain[-1].kind is not BtfKind.ARRAY:
                return False
            type_id = self.element(chain[-1])[0]
        raise malformed(f"type {type_id} is an array of more than {DEPTH_LIMIT} dimensions")

    def size(self, type_id: int) -> int:
        """Return what a type takes in bytes; raise PolicyError if it has no size, or 4 GiB and more."""
        size = 1
        for _depth in range(DEPTH_LIMIT):
            described = self.resolve(type_id)
            if described.kind is BtfKind.ARRAY:
                type_id, count = self.element(described)
                size *= count
                continue
            if described.kind is not BtfKind.PTR and described.kind not in _SIZED:
                raise malformed(f"type {type_id}, a {described.kind.name}, has no size")
            size *= _POINTER_BYTES if described.kind is BtfKind.PTR else described.target
            if size >= _WORD_LIMIT:
                raise malformed(f"type {type_id} takes {size} bytes")
            return size
        raise malformed(f"type {type_id} is an array of more than {DEPTH_LIMIT} dimensions")

    def element(self, array_type: Type) -> tuple[int, int]:
        """Return element type and length of an ARRAY."""
        element, _index, count = array_type.group(0)
        return element, count

    def member(self, composite: Type, index: int) -> Member:
        """Return one member of a STRUCT or UNION, or parameter of a FUNC_PROTO."""
        if composite.kind not in (BtfKind.STRUCT, BtfKind.UNION, BtfKind.FUNC_PROTO) or index >= composite.length:
            raise malformed(f"member {index} of type {composite.id}, a {composite.kind.name} with {composite.length}")
        name, type_id, *bits = composite.group(index)
        mask = 0xFFFFFF if composite.flag else 0xFFFFFFFF
        return Member(self.name(name), type_id, bits[0] & mask if bits else 0)

    def members(self, composite: Type, limit: int) -> list[Member]:
        """Return all of them; raise PolicyError if there are more than `limit`."""
        if composite.length > limit:
            raise malformed(
                f"type {composite.id}, {composite.name!r}, has {composite.length} members, more than {limit}"
            )
        return [self.member(composite, index) for index in range(composite.length)]

    def enumerators(self, enum: Type) -> list[tuple[str, int]]:
        """Return name and value of the constants of an ENUM or ENUM64."""
        if enum.kind not in _ENUMS:
            raise malformed(f"type {enum.id}, a {enum.kind.name}, has no constants")
        bits = 64 if enum.kind is BtfKind.ENUM64 else 32
        constants = []
        for name, low, *high in enum.groups():
            value = low | high[0] << 32 if high else low
            constants.append((self.name(name), value - (1 << bits) if enum.flag and value >> bits - 1 else value))
        return constants

    def placed(self, datasec: Type) -> list[Placed]:
        """Return what a DATASEC lists: variables, and for .ksyms functions."""
        listed = []
        for type_id, offset, size in datasec.groups():
            described = self.type(type_id)
            if described.kind not in (BtfKind.VAR, BtfKind.FUNC) or not described.name:
                raise malformed(f"section {datasec.name!r} lists type {type_id}, a {described.kind.name}")
            static = described.kind is BtfKind.VAR and described.group(0)[0] == 0
            listed.append(Placed(described.name, described.kind, described.target, offset, size, static))
        return listed


def read_btf(content: bytes) -> Btf:
    """Read a .BTF section.

    Raises:
        PolicyError: it is cut short, contradicts itself, or has kinds of types or more types than are known.
    """
    if len(content) < _HEADER.size:
        raise malformed(f"a .BTF section of {len(content)} bytes")
    magic, version, _flags, header_size, type_offset, type_size, string_offset, string_size = _HEADER.unpack_from(
        content
    )
    if magic != _MAGIC or version != 1 or header_size < _HEADER.size:
        raise malformed(f"a .BTF section with magic {magic:#x}, version {version}, a header of {header_size} bytes")
    types = _part(content, header_size + type_offset, type_size)
    strings = _part(content, header_size + string_offset, string_size)
    if type_offset % 4 or not string_size or strings[0] or strings[-1]:
        raise malformed("the strings of .BTF must begin and end with a zero, its types lie at a multiple of 4")
    return Btf(_type_offsets(types), types, strings)


def _part(content: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(content):
        raise malformed(f"a part of .BTF takes bytes {offset} to {offset + size} of {len(content)}")
    return content[offset : offset + size]


def _type_offsets(types: bytes) -> array[int]:
    """Where each type begins."""
    offsets = array("I")
    offset = 0
    while offset < len(types):
        if offset + _TYPE.size > len(types) or len(offsets) >= TYPE_LIMIT:
            raise malformed(f"type {len(offsets) + 1} is cut short, or there are more than {TYPE_LIMIT} types")
        (info,) = struct.unpack_from("<I", types, offset + 4)
        _kind, each, length = _shape(info)
        offsets.append(offset)
        offset += _TYPE.size + each * length * _WORD_BYTES
    if offset > len(types):
        raise malformed(f"type {len(offsets)} is cut short")
    return offsets


def _shape(info: int) -> tuple[BtfKind, int, int]:
    """Return kind, 32-bit words in each group that follows the header of a type, and number of groups."""
    number = info >> 24 & 0x1F
    if not 0 < number <= BtfKind.ENUM64:
        raise malformed(f"a type of kind {number}; known are 1 to {BtfKind.ENUM64.value}")
    kind = BtfKind(number)
    if each := _TRAILING_WORDS.get(kind, 0):
        return kind, each, 1
    each = _WORDS_PER_MEMBER.get(kind, 0)
    return kind, each, info & 0xFFFF if each else 0


def _is_named(described: Type) -> bool:
    return bool(described.name) and described.kind is not BtfKind.TYPE_TAG
