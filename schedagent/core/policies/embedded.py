"""BPF objects inside other files: the schedulers of the scx project, and C skeletons, carry theirs in their program.

    content = scheduler_inside(path)

An object is found by its ELF header, whatever section of the program it lies in, and ends where its section table or
its last section does. Nothing of the program is run, and nothing but these numbers of it is believed.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from schedagent.core.deployment import LARGEST_READ_BYTES
from schedagent.core.errors import PolicyError

ELF_MAGIC = b"\x7fELF"
LARGEST_PROGRAM_BYTES = 1 << 30
MOST_OBJECTS = 64
_MOST_HEADERS = 4096
"""ELF headers that are looked at in one file."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_IDENTITY = b"\x7fELF\x02\x01\x01"
_RELOCATABLE_FILE, _MACHINE_BPF, _NO_BITS = 1, 247, 8
_MARKS = (b".struct_ops", b"sched_ext_ops")
"""What the names of sections and of types have of an object that holds a scheduler."""


class Inside(NamedTuple):
    """The scheduler's object in a file, and how many objects there are."""

    content: bytes
    objects: int


def is_program(path: Path) -> bool:
    """Whether a file is an ELF file of any kind; raise PolicyError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(ELF_MAGIC)) == ELF_MAGIC
    except OSError as error:
        raise PolicyError(f"{path} cannot be read: {error.strerror}") from None


def scheduler_inside(path: Path) -> Inside:
    """Return the one BPF object with a sched_ext ops struct in a program.

    Raises:
        PolicyError: the file cannot be read, holds no BPF object, none with a scheduler, or several.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if len(content) > LARGEST_PROGRAM_BYTES:
                raise PolicyError(f"{path.name} is larger than {LARGEST_PROGRAM_BYTES >> 20} MiB")
            objects = list(_objects(content))
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path} cannot be read: {error}") from None
    schedulers = [each for each in objects if all(mark in each for mark in _MARKS)]
    if len(schedulers) == 1:
        return Inside(schedulers[0], len(objects))
    what = f"{len(objects)} BPF objects, and {len(schedulers) or 'none'} of them with a scheduler"
    hint = "give the object itself: FILE.bpf.o" if objects else "give a scheduler, its source or its object"
    raise PolicyError(f"{path.name} holds {what if objects else 'no BPF object'}", hint)


def _objects(content: mmap.mmap) -> Iterator[bytes]:
    place, looked, yielded = content.find(_IDENTITY), 0, 0
    while place >= 0 and looked < _MOST_HEADERS and yielded < MOST_OBJECTS:
        looked += 1
        size = _size(content, place)
        if size:
            yielded += 1
            yield content[place : place + size]
        place = content.find(_IDENTITY, place + max(size, 1))


def _size(content: mmap.mmap, start: int) -> int:
    """Return how long a BPF object is that begins here; 0 if none does, or a damaged or too large one."""
    if start + _HEADER.size > len(content):
        return 0
    header = _HEADER.unpack_from(content, start)
    kind, machine, table, entry_size, count = header[1], header[2], header[6], header[11], header[12]
    if (kind, machine, entry_size) != (_RELOCATABLE_FILE, _MACHINE_BPF, _SECTION_HEADER.size):
        return 0
    end = table + count * entry_size
    if end > LARGEST_READ_BYTES or start + end > len(content):
        return 0
    for fields in _SECTION_HEADER.iter_unpack(content[start + table : start + end]):
        if fields[1] != _NO_BITS:
            end = max(end, fields[4] + fields[5])
    return end if end <= LARGEST_READ_BYTES and start + end <= len(content) else 0
