"""A BPF object that observes: programs for some kernels only, iterators that are read like files, and maps."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

from kernel_bpf.load.bpf_object import BpfObject
from kernel_bpf.load.libbpf import call, libbpf
from schedagent.core.errors import BpfError

_PIECE_BYTES = 1 << 16


class ProbeObject(BpfObject):
    """As BpfObject."""

    def want_program(self, name: str) -> None:
        """Have a program loaded that is left out by itself (its section begins with "?"); only before `load`."""
        call("bpf_program__set_autoload", self._program(name), True, about=name)

    def set_room(self, name: str, entries: int) -> None:
        """Give a map room for so many entries; only before `load`."""
        call("bpf_map__set_max_entries", self._map(name), entries, about=name)

    def run_iterator(self, name: str) -> bytes:
        """Run an iterator over all that it visits; return what its program wrote.

        Raises:
            BpfError: the kernel refused.
        """
        link = call("bpf_program__attach", self._program(name), about=name)
        try:
            descriptor = call("bpf_iter_create", libbpf().bpf_link__fd(link), about=name)
            try:
                return b"".join(iter(lambda: os.read(descriptor, _PIECE_BYTES), b""))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BpfError(f"iterator {name} cannot be read: {error.strerror}", error.errno or 0) from None
        finally:
            call("bpf_link__destroy", link, about=name)

    def entries(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value of the entries of a hash map; what changes meanwhile may be there or not.

        Raises:
            BpfError: the kernel refused.
        """
        pointer, library = self._map(name), libbpf()
        sizes = library.bpf_map__key_size(pointer), library.bpf_map__value_size(pointer)
        key, following = None, ctypes.create_string_buffer(sizes[0])
        value = ctypes.create_string_buffer(sizes[1])
        for _entry in range(library.bpf_map__max_entries(pointer)):
            try:
                call("bpf_map__get_next_key", pointer, key, following, sizes[0], about=name)
                call("bpf_map__lookup_elem", pointer, following, sizes[0], value, sizes[1], 0, about=name)
            except BpfError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            yield following.raw, value.raw
            key = following.raw

    def mapped(self, name: str, size_bytes: int) -> bytes:
        """Return the beginning of an array map with BPF_F_MMAPABLE.

        Raises:
            BpfError: it cannot be mapped.
        """
        if not size_bytes:
            return b""
        try:
            with mmap.mmap(libbpf().bpf_map__fd(self._map(name)), size_bytes, prot=mmap.PROT_READ) as pages:
                return pages[:size_bytes]
        except OSError as error:
            raise BpfError(f"map {name} cannot be mapped: {error.strerror}", error.errno or 0) from None

    def counter(self, name: str) -> int:
        """Return the present value of an unsigned number among the variables that begin as zero."""
        variable = self.variables(".bss")[name]
        return int.from_bytes(self.read_variable(".bss", variable.offset, variable.size_bytes), "little")

    def _program(self, name: str) -> int:
        for program in self.programs():
            if program.name == name:
                return program.pointer
        raise BpfError(f"{self.name} has no program {name}")

    def _map(self, name: str) -> int:
        pointer = self.find_map(name)
        if pointer is None:
            raise BpfError(f"{self.name} has no map {name}")
        return pointer
