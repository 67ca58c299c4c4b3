"""What of a source is ours: the headers it includes, if it leaves their words alone, or all of it, if we composed it.

A branch in one of our headers is a part of a primitive that is proved with the bundled policies: a clamp, a table, a
hash. The source must not give another meaning to what stands there, so it may define none of their words; and
`#line` directives that lie about places are refused by the source gate.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from kernel_bpf.build.source import read_source
from kernel_bpf.policies.compose import INCLUDE, carried_spec, compose
from schedagent.core.errors import PolicyError, UsageError
from schedagent.core.policies.policy import PolicyInfo
from schedagent.core.policies.spec_reader import read_spec

_DEFINES = re.compile(r'\b(?:define|undef|push_macro|pop_macro)\b(?:\s|/\*.*?\*/|[("\\])*(\w+)', re.ASCII | re.DOTALL)
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_CONTINUED = re.compile(r"\\[ \t]*\r?\n")


def leaves_headers_alone(info: PolicyInfo, include_dirs: Sequence[Path]) -> bool:
    """Whether a source is compiled with our headers as they are, and with no others beside the kernel's."""
    if (
        info.is_object
        or info.parts
        or any(path != info.source for folder in include_dirs for path in folder.rglob("*"))
    ):
        return False
    try:
        text = _CONTINUED.sub("", read_source(info.source).decode())
    except (PolicyError, UsageError):
        return False
    return not _words().intersection(_DEFINES.findall(text))


@functools.cache
def _words() -> frozenset[str]:
    """Every word that stands in one of our headers, in comments, too."""
    return frozenset(word for path in INCLUDE.glob("*.h") for word in _WORD.findall(path.read_text(encoding="utf-8")))


def is_composed(info: PolicyInfo) -> bool:
    """Whether a source is, byte by byte, what our composer makes of the spec that it carries."""
    if info.is_object or info.parts or info.rodata:
        return False
    try:
        text = read_source(info.source).decode()
        return compose(read_spec(carried_spec(text))).source == text
    except (PolicyError, UsageError, ValueError, RecursionError):
        return False
