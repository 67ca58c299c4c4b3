"""Which mutants are worth a judgement: those that compile, and to another program than the original."""

from __future__ import annotations

import io
from enum import StrEnum
from pathlib import Path

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import KernelTarget
from schedagent.core.errors import CompileError
from tests.mutation.mutants import Mutant


class Birth(StrEnum):
    """How a mutant came out of the compiler."""

    ALIVE = "alive"
    STILLBORN = "does not compile"
    UNCHANGED = "compiles to the same program"


class Nursery:
    """Compiles mutants and compares them with what they were made from.

    Args:
        target: the kernel to compile for.
        folder: where sources and compiled objects are kept.
    """

    def __init__(self, target: KernelTarget, folder: Path) -> None:
        self._target = target
        self._folder = folder
        self._originals: dict[str, dict[str, object]] = {}

    def birth(self, mutant: Mutant) -> Birth:
        """Say how a mutant came out of the compiler."""
        try:
            after = self._compile(mutant)
        except CompileError:
            return Birth.STILLBORN
        return Birth.UNCHANGED if after == self._before(mutant) else Birth.ALIVE

    def _before(self, mutant: Mutant) -> dict[str, object]:
        if mutant.policy not in self._originals:
            self._originals[mutant.policy] = self._compile(mutant.original)
        return self._originals[mutant.policy]

    def _compile(self, mutant: Mutant) -> dict[str, object]:
        info = mutant.write(self._folder)
        return sections(compile_policy(info.source, info.name, self._target, cache_dir=self._folder).object_bytes)


def sections(object_bytes: bytes) -> dict[str, object]:
    """What the kernel is given: each loaded section's content and what it refers to; line numbers are in others."""
    elf = ELFFile(io.BytesIO(object_bytes))
    content: dict[str, object] = {s.name: s.data() for s in elf.iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_ALLOC}
    symbols = [
        symbol.name
        for table in elf.iter_sections()
        if isinstance(table, SymbolTableSection)
        for symbol in table.iter_symbols()
    ]
    for section in elf.iter_sections():
        if isinstance(section, RelocationSection) and section.name.removeprefix(".rel") in content:
            content[section.name] = [(r["r_offset"], symbols[r["r_info_sym"]]) for r in section.iter_relocations()]
    return content
