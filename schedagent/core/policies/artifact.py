"""A compiled policy: the bytes the kernel will be given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class InlinedCall:
    """A call that the compiler replaced by the function called.

    Args:
        function: of the object, that holds it.
        start, end: bytes of that function which come of it.
        file, line: of the call.
    """

    function: str
    start: int
    end: int
    file: str
    line: int


@dataclass(frozen=True)
class PolicyArtifact:
    """One compiled BPF object.

    Args:
        name: policy name (the struct_ops map and root/ops carry it).
        object_bytes: the ELF file.
        source_digest: hex SHA-256 of the C source.
        btf_build_id: hex GNU build id of the kernel whose BTF it was compiled against.
        log: output of clang, warnings included.
        inlined: the calls that were inlined, the outer ones before those within them; none if that is not known.
    """

    name: str
    object_bytes: bytes = field(repr=False)
    source_digest: str
    btf_build_id: str
    log: str = ""
    inlined: tuple[InlinedCall, ...] = field(default=(), repr=False, compare=False)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the ELF bytes."""
        return hashlib.sha256(self.object_bytes).hexdigest()
