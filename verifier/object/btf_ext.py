""". BTF.ext: what the compiler records of single instructions: their function, source line and CO-RE relocation.

Layouts: struct btf_ext_header and struct btf_ext_info_sec in tools/lib/bpf/libbpf_internal.h, struct bpf_func_info,
bpf_line_info and bpf_core_relo in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from verifier.object.btf import Btf
from verifier.object.elf import malformed

RECORD_LIMIT = 1 << 17
"""Most records of one kind; the compiler writes fewer than one per instruction."""

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBI")
_WORD_BYTES = 4
_FUNCTION_WORDS, _LINE_WORDS, _CORE_WORDS = 2, 4, 4


class Records:
    """The records of one kind for one section, found by the byte offset of an instruction; eight bytes for each."""

    def __init__(self, content: bytes, size: int, words: int) -> None:
        self._content = content
        self._record = struct.Struct(f"<{words}I")
        starts = range(0, len(content), size)
        self._starts = array("I", sorted(starts, key=self._place))
        self._places = array("I", map(self._place, self._starts))

    def get(self, place: int) -> tuple[int, ...] | None:
        """Return the words of the record behind its offset, None if there is none for this offset."""
        index = bisect_left(self._places, place)
        if index == len(self._places) or self._places[index] != place:
            return None
        return self._record.unpack_from(self._content, self._starts[index])[1:]

    def repeated(self) -> int | None:
        """Return an offset that has two records, None if none has."""
        return next((place for place, after in pairwise(self._places) if place == after), None)

    def _place(self, start: int) -> int:
        return int.from_bytes(self._content[start : start + _WORD_BYTES], "little")


NO_RECORDS = Records(b"", _WORD_BYTES, 1)


@dataclass(frozen=True)
class BtfExt:
    """What .BTF.ext contains, by section.

    Args:
        functions: type id of the function that begins here.
        lines: offsets of file name and line text, and line << 10 | column.
        relocations: root type id, offset of the access string, kind.
    """

    functions: Mapping[str, Records]
    lines: Mapping[str, Records]
    relocations: Mapping[str, Records]


def read_btf_ext(content: bytes, btf: Btf) -> BtfExt:
    """Read a .BTF.ext section; an empty one (there is none) contains nothing.

    Raises:
        PolicyError: it is cut short, contradicts itself, or exceeds a limit.
    """
    if not content:
        return BtfExt({}, {}, {})
    if len(content) < _HEADER.size:
        raise malformed(f"a .BTF.ext section of {len(content)} bytes")
    magic, version, _flags, header_size = _HEADER.unpack_from(content)
    if magic != _MAGIC or version != 1 or not _HEADER.size <= header_size <= len(content):
        raise malformed(f"a .BTF.ext section with magic {magic:#x}, version {version}, header of {header_size} bytes")
    fields = content[_HEADER.size : header_size]
    words = struct.unpack(f"<{len(fields) // _WORD_BYTES}I", fields[: len(fields) // _WORD_BYTES * _WORD_BYTES])[:6]
    places = [*words, *[0] * (6 - len(words))]
    functions, lines, relocations = (
        _records(_part(content, header_size + places[pair], places[pair + 1]), wanted, btf)
        for pair, wanted in ((0, _FUNCTION_WORDS), (2, _LINE_WORDS), (4, _CORE_WORDS))
    )
    return BtfExt(functions, lines, relocations)


def _part(content: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(content):
        raise malformed(f"a part of .BTF.ext takes bytes {offset} to {offset + size} of {len(content)}")
    return content[offset : offset + size]


def _records(part: bytes, words: int, btf: Btf) -> dict[str, Records]:
    """Read the records of one kind: a record size, then for each section its name, a count, and the records."""
    by_section: dict[str, Records] = {}
    if not part:
        return by_section
    (size,) = _words(part, 0, 1)
    if size < words * _WORD_BYTES or size % _WORD_BYTES:
        raise malformed(f"records of {size} bytes in .BTF.ext")
    offset, total = _WORD_BYTES, 0
    while offset < len(part):
        name_offset, count = _words(part, offset, 2)
        offset += 2 * _WORD_BYTES
        total += count
        if not count or total > RECORD_LIMIT or offset + count * size > len(part):
            raise malformed(f"{count} records of {size} bytes at byte {offset} of {len(part)} in .BTF.ext")
        name = btf.name(name_offset)
        records = Records(part[offset : offset + count * size], size, words)
        if name in by_section or records.repeated() is not None:
            raise malformed(f".BTF.ext describes {name!r} twice, or its byte {records.repeated()}")
        by_section[name] = records
        offset += count * size
    return by_section


def _words(part: bytes, offset: int, count: int) -> tuple[int, ...]:
    if offset + count * _WORD_BYTES > len(part):
        raise malformed(f".BTF.ext is cut short at byte {offset} of {len(part)}")
    return struct.unpack_from(f"<{count}I", part, offset)
