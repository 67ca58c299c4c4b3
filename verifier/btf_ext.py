""".BTF.ext: what the compiler says of single instructions: their function, source line and CO-RE relocation.

Layouts: struct btf_ext_header and struct btf_ext_info_sec in tools/lib/bpf/libbpf_internal.h, struct bpf_func_info,
bpf_line_info and bpf_core_relo in include/uapi/linux/bpf.h.
May import: verifier.btf_reader, verifier.elf_reader.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from verifier.btf_reader import Btf
from verifier.elf_reader import malformed

RECORD_LIMIT = 1 << 18
"""Most records of one kind; the compiler writes fewer than one per instruction."""

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBI")
_WORD_BYTES = 4
_FUNCTION_WORDS, _LINE_WORDS, _CORE_WORDS = 2, 4, 4

Records = Mapping[str, Mapping[int, tuple[int, ...]]]
"""Section name -> byte offset of an instruction in it -> the other words of the record."""


@dataclass(frozen=True)
class BtfExt:
    """What .BTF.ext says.

    Args:
        functions: type id of the function that begins here.
        lines: offsets of file name and line text, and line << 10 | column.
        relocations: root type id, offset of the access string, kind.
    """

    functions: Records
    lines: Records
    relocations: Records


def read_btf_ext(content: memoryview, btf: Btf) -> BtfExt:
    """Read a .BTF.ext section; an empty one (there is none) says nothing.

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


def _part(content: memoryview, offset: int, size: int) -> memoryview:
    if offset + size > len(content):
        raise malformed(f"a part of .BTF.ext takes bytes {offset} to {offset + size} of {len(content)}")
    return content[offset : offset + size]


def _records(part: memoryview, wanted: int, btf: Btf) -> dict[str, dict[int, tuple[int, ...]]]:
    """Read the records of one kind: a record size, then for each section its name, a count, and the records."""
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    if not part:
        return found
    (size,) = _words(part, 0, 1)
    if size < wanted * _WORD_BYTES or size % _WORD_BYTES:
        raise malformed(f"records of {size} bytes in .BTF.ext")
    offset, total = _WORD_BYTES, 0
    while offset < len(part):
        name, count = _words(part, offset, 2)
        offset += 2 * _WORD_BYTES
        total += count
        if not count or total > RECORD_LIMIT or offset + count * size > len(part):
            raise malformed(f"{count} records of {size} bytes at byte {offset} of {len(part)} in .BTF.ext")
        section = found.setdefault(btf.name(name), {})
        for place, *rest in _each(part[offset : offset + count * size], size, wanted):
            if place in section:
                raise malformed(f".BTF.ext tells twice of byte {place} of {btf.name(name)!r}")
            section[place] = tuple(rest)
        offset += count * size
    return found


def _each(part: memoryview, size: int, wanted: int) -> Iterator[tuple[int, ...]]:
    return struct.iter_unpack(f"<{wanted}I{size - wanted * _WORD_BYTES}x", part)


def _words(part: memoryview, offset: int, count: int) -> tuple[int, ...]:
    if offset + count * _WORD_BYTES > len(part):
        raise malformed(f".BTF.ext is cut short at byte {offset} of {len(part)}")
    return struct.unpack_from(f"<{count}I", part, offset)
