"""libbpf through ctypes: declared signatures, errno handling and libbpf's own log. Nothing else.
Signatures follow libbpf 1.4's libbpf.h, bpf.h and btf.h; no newer symbol is used.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import threading
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

from schedagent.core.errors import BpfError, SetupError
from schedagent.core.installation import this_installation

log = logging.getLogger(__name__)

OLDEST = (1, 4)
"""Debian 12's own 1.1 cannot attach struct_ops through a link."""


class OpenOptions(ctypes.Structure):
    """The first fields of `struct bpf_object_open_opts`; `sz` is how many bytes libbpf is given.

    Without object_name libbpf invents one from the buffer's address, and map names with it.
    """

    _fields_ = (("sz", c_size_t), ("object_name", c_char_p))


class LoadOptions(ctypes.Structure):
    """The first fields of `struct bpf_prog_load_opts`."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
    )


class TestRunOptions(ctypes.Structure):
    """`struct bpf_test_run_opts`; all zero but `sz` runs a SYSCALL program once, without a context."""

    _fields_ = (("sz", c_size_t), ("_data", c_uint64 * 3), ("_contexts", c_uint64 * 3), ("_counts", c_uint32 * 6))


class ProgramInfo(ctypes.Structure):
    """`struct bpf_prog_info` of include/uapi/linux/bpf.h up to verified_insns (Linux 5.16)."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint64),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("_load_time_to_name", c_uint64 * 5),
        ("_interface_to_namespaces", c_uint64 * 3),
        ("_symbols_to_tags", c_uint64 * 11),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
        ("verified_insns", c_uint32),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_major_version": (c_uint32, ()),
    "libbpf_minor_version": (c_uint32, ()),
    "libbpf_num_possible_cpus": (c_int, ()),
    "libbpf_set_print": (c_void_p, (c_void_p,)),
    "bpf_object__open_mem": (c_void_p, (c_void_p, c_size_t, POINTER(OpenOptions))),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__btf": (c_void_p, (c_void_p,)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__type": (c_uint32, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__is_internal": (c_bool, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__get_next_key": (c_int, (c_void_p, c_void_p, c_void_p, c_size_t)),
    "bpf_map__inner_map": (c_void_p, (c_void_p,)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "bpf_map__lookup_elem": (c_int, (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_uint64)),
    "bpf_map__update_elem": (c_int, (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_uint64)),
    "bpf_map__attach_struct_ops": (c_void_p, (c_void_p,)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__section_name": (c_char_p, (c_void_p,)),
    "bpf_program__type": (c_uint32, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__insn_cnt": (c_size_t, (c_void_p,)),
    "bpf_program__autoattach": (c_bool, (c_void_p,)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_iter_create": (c_int, (c_int,)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_link__detach": (c_int, (c_void_p,)),
    "bpf_link__open": (c_void_p, (c_char_p,)),
    "bpf_link__pin": (c_int, (c_void_p, c_char_p)),
    "bpf_link__pin_path": (c_char_p, (c_void_p,)),
    "bpf_link__unpin": (c_int, (c_void_p,)),
    "bpf_map__pin": (c_int, (c_void_p, c_char_p)),
    "bpf_map__unpin": (c_int, (c_void_p, c_char_p)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_obj_get": (c_int, (c_char_p,)),
    "bpf_prog_load": (c_int, (c_uint32, c_char_p, c_char_p, c_char_p, c_size_t, POINTER(LoadOptions))),
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(TestRunOptions))),
    "bpf_prog_get_info_by_fd": (c_int, (c_int, POINTER(ProgramInfo), POINTER(c_uint32))),
    "bpf_prog_get_next_id": (c_int, (c_uint32, POINTER(c_uint32))),
    "bpf_map_get_next_id": (c_int, (c_uint32, POINTER(c_uint32))),
    "btf__parse": (c_void_p, (c_char_p, c_void_p)),
    "btf__free": (None, (c_void_p,)),
    "btf__type_cnt": (c_uint32, (c_void_p,)),
    "btf__type_by_id": (c_void_p, (c_void_p, c_uint32)),
    "btf__name_by_offset": (c_char_p, (c_void_p, c_uint32)),
    "btf__find_by_name_kind": (c_int, (c_void_p, c_char_p, c_uint32)),
    "btf__resolve_size": (c_int64, (c_void_p, c_uint32)),
}

_PrintFunction = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)
_PRINT_DEBUG = 2
_messages = threading.local()


@functools.cache
def libbpf() -> ctypes.CDLL:
    """Return libbpf.so.1 with every signature declared.

    Raises:
        SetupError: it is missing or older than OLDEST.
    """
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise SetupError(f"libbpf.so.1 cannot be opened: {error}", this_installation().how_to_set_up()) from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    version = (library.libbpf_major_version(), library.libbpf_minor_version())
    if version < OLDEST:
        raise SetupError(
            f"libbpf {version[0]}.{version[1]} is too old, 1.4 is the first that works",
            this_installation().how_to_set_up(),
        )
    library.libbpf_set_print(ctypes.cast(_print_callback, c_void_p))
    return library


def call(function: str, *arguments: Any, about: str = "") -> int:
    """Call a libbpf function; return its number or pointer.

    Args:
        about: what it is applied to, for the message.

    Raises:
        BpfError: it returned a null pointer (errno set) or a negative errno; carries what libbpf printed.
    """
    library = libbpf()
    outer, _messages.lines = getattr(_messages, "lines", None), []
    try:
        ctypes.set_errno(0)
        result: int | None = getattr(library, function)(*arguments)
        printed = "".join(_messages.lines)
    finally:
        _messages.lines = outer
    if result is not None and result >= 0:
        return result
    errno = ctypes.get_errno() if result is None else -result
    target = f" on {about}" if about else ""
    raise BpfError(f"{function}{target} failed: {os.strerror(errno)} (errno {errno})", errno, printed)


def text(pointer: bytes | None) -> str:
    """Decode a C string; a null pointer is an empty text."""
    return (pointer or b"").decode(errors="replace")


def _on_print(level: int, template: int, arguments: int) -> int:
    """Format one message of libbpf. The va_list travels as a pointer on x86-64 and arm64."""
    if level >= _PRINT_DEBUG:
        return 0
    libc = ctypes.CDLL(None)
    buffer = c_void_p()
    length: int = libc.vasprintf(ctypes.byref(buffer), c_void_p(template), c_void_p(arguments))
    if length < 0 or buffer.value is None:
        return length
    message = ctypes.string_at(buffer.value, length).decode(errors="replace")
    libc.free(buffer)
    lines: list[str] | None = getattr(_messages, "lines", None)
    if lines is None:
        log.debug("libbpf: %s", message.rstrip())
    else:
        lines.append(message)
    return length


_print_callback = _PrintFunction(_on_print)
"""Kept alive by the module: libbpf calls it until the process ends."""
