"""What is handed in to be verified: a C source that is compiled here, or an object that somebody compiled elsewhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.inlined import inlined_calls
from kernel_bpf.build.source import read_source
from kernel_bpf.build.target import KernelTarget, enum_values
from kernel_bpf.policies.library import load_library
from schedagent.core.deployment import LARGEST_OBJECT_BYTES, LARGEST_READ_BYTES
from schedagent.core.errors import PolicyError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.embedded import scheduler_inside
from schedagent.core.policies.policy import PolicyInfo, Standing, Tunable
from schedagent.core.policies.proposal import Origin
from verifier.logic.rules.reads import reader
from verifier.logic.taint.limits import LimitsCode, limits_code
from verifier.object.elf import size_beside_arena
from verifier.object.image import BpfImage
from verifier.object.reader import read_object
from verifier.object.rodata import with_rodata

_STRIP = "leave its debug information out, which the kernel does not read: llvm-strip -g FILE.bpf.o"

_MADE = (Origin.COMPOSE, Origin.PATCH, Origin.GENERATE)

_WITH_READER = "longest_first"
"""A bundled policy that includes identity.bpf.h."""

_WITH_LIMITS = "fair"
"""A bundled policy that includes cgroups.bpf.h and bandwidth.bpf.h."""

_NAME = re.compile(r"[A-Za-z0-9_]{1,100}")


def build(info: PolicyInfo, target: KernelTarget, include_dirs: Sequence[Path], cache_dir: Path) -> PolicyArtifact:
    """Compile a policy for a kernel; an object is taken as it is. What its loader is assumed to set is set in it.

    Raises:
        PolicyError: the file cannot be read, or the object is too large to be deployed.
        UsageError: the object has no such variable, or it cannot have that value.
        CompileError: clang refused it, with clang's own lines.
    """
    artifact = _as_brought(info, target, include_dirs, cache_dir)
    if not info.rodata:
        return artifact
    content = with_rodata(artifact.object_bytes, info.rodata, enum_values(target))
    return replace(artifact, object_bytes=content)


def _as_brought(
    info: PolicyInfo, target: KernelTarget, include_dirs: Sequence[Path], cache_dir: Path
) -> PolicyArtifact:
    if info.is_object:
        content, origin = _read_object(info.source)
        return PolicyArtifact(info.name, content, "", target.btf_build_id, origin, inlined_calls(content))
    artifact = compile_policy(
        info.source, info.name, target, include_dirs=include_dirs, parts=info.parts, cache_dir=cache_dir
    )
    size = size_beside_arena(artifact.object_bytes)
    if size > LARGEST_OBJECT_BYTES:
        raise _too_large(f"{size} bytes came out of the compiler", "")
    return artifact


def standing(info: PolicyInfo, include_dirs: Sequence[Path]) -> Standing:
    """Return where a policy comes from; who asks is believed in one direction only: a bundled policy is known by its
    bytes, compiled with our headers alone.

    Raises:
        PolicyError: the source cannot be read.
    """
    alone = not (info.is_object or include_dirs or info.parts or info.rodata)
    if alone and read_source(info.source) in _bundled():
        return Standing.BUNDLED
    return Standing.DERIVED if info.origin in _MADE else Standing.FOREIGN


@functools.cache
def _bundled() -> frozenset[bytes]:
    return frozenset(read_source(policy.source) for policy in load_library().values())


def accepted_reader(target: KernelTarget, cache_dir: Path) -> str:
    """Return which program may read the arguments of tasks: that of our header, as a bundled policy has it.

    Raises:
        CompileError, SetupError: the bundled policy cannot be compiled.
    """
    return reader(_compiled(_WITH_READER, target, cache_dir))


def accepted_limits(target: KernelTarget, cache_dir: Path) -> LimitsCode:
    """Return the code of our headers that keeps limits of cgroups, as a bundled policy has it.

    Raises:
        CompileError, SetupError: the bundled policy cannot be compiled.
    """
    return limits_code(_compiled(_WITH_LIMITS, target, cache_dir))


def _compiled(name: str, target: KernelTarget, cache_dir: Path) -> BpfImage:
    """A bundled policy."""
    policy = load_library()[name]
    return read_object(compile_policy(policy.source, policy.name, target, cache_dir=cache_dir).object_bytes)


def declared_tunables(artifact: PolicyArtifact) -> tuple[Tunable, ...]:
    """Return the `const volatile` numbers of an object that nobody documented, with the range of their size.

    Names that begin with two underscores are no tunables: by the convention of the scx headers the loader sets them.

    Raises:
        PolicyError: the object cannot be read.
    """
    return tuple(
        Tunable(
            name=variable.name,
            type=f"u{8 * variable.size}",
            unit="none",
            minimum=-(1 << 8 * variable.size - 1),
            maximum=(1 << 8 * variable.size) - 1,
            default=int.from_bytes(variable.content, "little"),
            effect="not documented",
        )
        for variable in read_object(artifact.object_bytes).variables.values()
        if variable.section == ".rodata" and variable.volatile and not variable.name.startswith("__")
        if variable.size in (1, 2, 4, 8)
    )


def _read_object(path: Path) -> tuple[bytes, str]:
    """Return an object, and where it lay if it is that of a program."""
    if path.suffix != ".o":
        content, count = scheduler_inside(path)
        others = f", and {count - 1} other BPF objects" if count > 1 else ""
        return content, f"{path.name} holds it{others}"
    try:
        if not path.is_file():
            raise PolicyError(f"{path} is not a regular file")
        with path.open("rb") as file:
            content = file.read(LARGEST_READ_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"{path} cannot be read: {error.strerror}") from None
    if size_beside_arena(content) > LARGEST_OBJECT_BYTES:
        raise _too_large(f"{path.name} is larger", _STRIP)
    return content, ""


def _too_large(what: str, hint: str) -> PolicyError:
    return PolicyError(f"{what}, and no object of more than {LARGEST_OBJECT_BYTES} bytes can be deployed", hint)


def check_name(name: str) -> None:
    """Raise PolicyError unless a policy may be called so."""
    if not _NAME.fullmatch(name):
        raise PolicyError(f"{name!r} cannot be the name of a policy: letters, digits and _ only")
