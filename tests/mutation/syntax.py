"""C syntax trees from libclang, over ctypes: only what the operators need, with offsets into the text.

Source of layouts and numbers: clang-c/Index.h of LLVM 19.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from schedagent.core.errors import CompileError, SetupError

LIBRARY = "libclang-19.so.1"


class Kind(IntEnum):
    """The cursor kinds that the operators look at (enum CXCursorKind)."""

    FUNCTION = 8
    VARIABLE = 9
    CALL = 103
    BINARY = 114
    COMPOUND_ASSIGNMENT = 115
    COMPOUND = 202
    IF = 205
    RETURN = 214
    OTHER = -1


@dataclass(frozen=True)
class Node:
    """One node: what it is, its name if it has one, and where it lies in the text.

    Offsets are those after macro expansion: a node that comes out of a macro lies where the macro is used.
    """

    kind: Kind
    name: str
    start: int
    end: int
    children: tuple[Node, ...] = field(repr=False, default=())

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in the order of the text."""
        yield self
        for child in self.children:
            yield from child.walk()


class _Cursor(ctypes.Structure):
    _fields_ = (("kind", c_int), ("xdata", c_int), ("data", c_void_p * 3))


class _Location(ctypes.Structure):
    _fields_ = (("pointers", c_void_p * 2), ("number", c_uint))


class _Range(ctypes.Structure):
    _fields_ = (("pointers", c_void_p * 2), ("begin", c_uint), ("end", c_uint))


class _String(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("flags", c_uint))


_Visitor = ctypes.CFUNCTYPE(c_int, _Cursor, _Cursor, c_void_p)
_CONTINUE = 1

_PROTOTYPES = {
    "clang_createIndex": (c_void_p, [c_int, c_int]),
    "clang_disposeIndex": (None, [c_void_p]),
    "clang_parseTranslationUnit": (c_void_p, [c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, c_uint, c_uint]),
    "clang_disposeTranslationUnit": (None, [c_void_p]),
    "clang_getTranslationUnitCursor": (_Cursor, [c_void_p]),
    "clang_visitChildren": (c_uint, [_Cursor, _Visitor, c_void_p]),
    "clang_getCursorExtent": (_Range, [_Cursor]),
    "clang_getCursorSpelling": (_String, [_Cursor]),
    "clang_getRangeStart": (_Location, [_Range]),
    "clang_getRangeEnd": (_Location, [_Range]),
    "clang_getFile": (c_void_p, [c_void_p, c_char_p]),
    "clang_getExpansionLocation": (None, [_Location, POINTER(c_void_p), c_void_p, c_void_p, POINTER(c_uint)]),
    "clang_getCString": (c_char_p, [_String]),
    "clang_disposeString": (None, [_String]),
}


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise SetupError(f"{LIBRARY} cannot be loaded: {error}", "it comes with clang-19: make setup") from None
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def parse(source: Path, flags: Sequence[str]) -> tuple[Node, ...]:
    """Return the functions and variables that a C file itself declares, not those of the headers it includes.

    Raises:
        SetupError: libclang is not there.
        CompileError: it cannot make a tree of the file.
    """
    clang = _library()
    words = [flag.encode() for flag in flags]
    index = clang.clang_createIndex(0, 0)
    try:
        unit = clang.clang_parseTranslationUnit(
            index, str(source).encode(), (c_char_p * len(words))(*words), len(words), None, 0, 0
        )
        if not unit:
            raise CompileError(f"libclang cannot parse {source}")
        try:
            main = clang.clang_getFile(unit, str(source).encode())
            root = clang.clang_getTranslationUnitCursor(unit)
            return tuple(_node(child) for child in _children(root) if _extent(child)[0] == main)
        finally:
            clang.clang_disposeTranslationUnit(unit)
    finally:
        clang.clang_disposeIndex(index)


def _children(cursor: _Cursor) -> list[_Cursor]:
    found: list[_Cursor] = []

    def visit(child: _Cursor, _parent: _Cursor, _data: object) -> int:
        found.append(_Cursor.from_buffer_copy(child))
        return _CONTINUE

    _library().clang_visitChildren(cursor, _Visitor(visit), None)
    return found


def _node(cursor: _Cursor) -> Node:
    kind = Kind(cursor.kind) if cursor.kind in Kind.__members__.values() else Kind.OTHER
    _file, start, end = _extent(cursor)
    return Node(kind, _spelling(cursor), start, end, tuple(map(_node, _children(cursor))))


def _extent(cursor: _Cursor) -> tuple[int | None, int, int]:
    """The file (a handle), where the cursor starts in it, and where it ends."""
    clang = _library()
    extent = clang.clang_getCursorExtent(cursor)
    file, start = _position(clang.clang_getRangeStart(extent))
    return file, start, _position(clang.clang_getRangeEnd(extent))[1]


def _position(location: _Location) -> tuple[int | None, int]:
    file, offset = c_void_p(), c_uint()
    _library().clang_getExpansionLocation(location, byref(file), None, None, byref(offset))
    return file.value, offset.value


def _spelling(cursor: _Cursor) -> str:
    clang = _library()
    string = clang.clang_getCursorSpelling(cursor)
    try:
        return (clang.clang_getCString(string) or b"").decode()
    finally:
        clang.clang_disposeString(string)
