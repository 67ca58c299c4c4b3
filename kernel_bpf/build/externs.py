"""Kfuncs that several objects call, so that libbpf's linker makes one object of them.

Before version 1.6 it wants to know the size of an extern symbol that it meets a second time, and a function has none
("failed to resolve size of underlying type"). So each object calls such a kfunc by a name of its own: what follows
three underscores is no part of it, for libbpf as it loads the object and for whoever reads it.

Layouts: include/uapi/linux/btf.h, and elf.h. What is changed is clang's; what cannot be read is left as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

_ELF = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_BTF = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_SYMBOL_TABLE, _UNDEFINED = 2, 0
_FUNC, _DATASEC = 12, 15
_BEHIND = {
    1: (4, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    17: (4, 0),
    19: (0, 12),
}
"""BTF_KIND_* -> bytes behind the type itself, and behind it for each of its parts."""

_SECTION_OF_KFUNCS = b".ksyms"


def kfuncs(content: bytes) -> frozenset[bytes]:
    """Return the names of the kfuncs that an object declares; none if it cannot be read."""
    try:
        btf = _section(content, b".BTF")
        return frozenset(name for name, _place in _declared(content, btf))
    except (struct.error, IndexError, ValueError):
        return frozenset()


def with_own_names(content: bytes, taken: Collection[bytes], mark: str) -> bytes:
    """Return an object in which kfuncs have names of its own; unchanged if it cannot be read.

    Args:
        taken: names of kfuncs that other objects declare.
        mark: what makes a name this object's own; letters and digits.
    """
    try:
        return _renamed(content, taken, mark.encode())
    except (struct.error, IndexError, ValueError):
        return content


def _renamed(content: bytes, taken: Collection[bytes], mark: bytes) -> bytes:
    btf = _section(content, b".BTF")
    changed = bytearray(content)
    header = list(_BTF.unpack_from(content, btf[4]))
    texts = bytearray(content[btf[4] : btf[4] + btf[5]])
    renamed: dict[bytes, bytes] = {}
    for name, place in _declared(content, btf):
        if name in taken:
            base, _marks, suffix = name.rpartition(b"___")
            renamed[name] = b"%b___%b%b" % (base or name, suffix if base else b"", mark)
            struct.pack_into("<I", texts, place - btf[4], header[7])
            texts += renamed[name] + b"\0"
            header[7] += len(renamed[name]) + 1
    if not renamed:
        return content
    _BTF.pack_into(texts, 0, *header)
    table = next(fields for _index, fields in _sections(content) if fields[1] == _SYMBOL_TABLE)
    strings = _fields(content, table[6])
    names = bytearray(content[strings[4] : strings[4] + strings[5]])
    for place in range(table[4], table[4] + table[5], _SYMBOL.size):
        offset, _info, _other, section, _value, _size = _SYMBOL.unpack_from(content, place)
        name = _text(content, strings[4] + offset)
        if section == _UNDEFINED and name in renamed:
            struct.pack_into("<I", changed, place, len(names))
            names += renamed[name] + b"\0"
    for index, fields in _sections(content):
        if fields in (btf, strings):
            _move(changed, index, texts if fields == btf else names)
    return bytes(changed)


def _move(content: bytearray, index: int, section: bytearray) -> None:
    """Put a section that has grown to the end of the file, and say so in the section table."""
    content += b"\0" * (-len(content) % 8)
    place = _ELF.unpack_from(content)[6] + index * _SECTION.size
    struct.pack_into("<QQ", content, place + 24, len(content), len(section))
    content += section


def _declared(content: bytes, btf: tuple[int, ...]) -> Iterator[tuple[bytes, int]]:
    """Yield the names of the functions in the section of kfuncs, and where in the file each is named."""
    start, header = btf[4], _BTF.unpack_from(content, btf[4])
    place, end, strings = (
        start + header[3] + header[4],
        start + header[3] + header[4] + header[5],
        start + header[3] + header[6],
    )
    functions: dict[int, int] = {}
    listed: list[int] = []
    number = 0
    while place < end:
        number += 1
        name, info, _target = _TYPE.unpack_from(content, place)
        kind, parts = info >> 24 & 0x1F, info & 0xFFFF
        if kind == _FUNC:
            functions[number] = place
        if kind == _DATASEC and _text(content, strings + name) == _SECTION_OF_KFUNCS:
            places = range(place + _TYPE.size, place + _TYPE.size + 12 * parts, 12)
            listed = [struct.unpack_from("<I", content, each)[0] for each in places]
        fixed, each = _BEHIND.get(kind, (0, 0))
        place += _TYPE.size + fixed + each * parts
    for number in listed:
        if number in functions:
            (name,) = struct.unpack_from("<I", content, functions[number])
            yield _text(content, strings + name), functions[number]


def _sections(content: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    for index in range(_ELF.unpack_from(content)[12]):
        yield index, _fields(content, index)


def _fields(content: bytes, index: int) -> tuple[int, ...]:
    return _SECTION.unpack_from(content, _ELF.unpack_from(content)[6] + index * _SECTION.size)


def _section(content: bytes, name: bytes) -> tuple[int, ...]:
    names = _fields(content, _ELF.unpack_from(content)[13])[4]
    return next(fields for _index, fields in _sections(content) if _text(content, names + fields[0]) == name)


def _text(content: bytes, place: int) -> bytes:
    return content[place : content.index(b"\0", place)]
