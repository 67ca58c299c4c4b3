"""From a PolicySpec to a policy: readable BPF C built on the primitives of bpf/include, and its documentation.

    composed = compose(spec)
    composed.source     # NAME.bpf.c
    composed.toml       # NAME.toml

The same spec always gives the same bytes.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from kernel_bpf import BPF
from kernel_bpf.policies.c_text import comment
from kernel_bpf.policies.compose_code import MEMBERS, callbacks, includes, ops_struct, predicates
from kernel_bpf.policies.compose_words import Setting, documentation, header, settings
from schedagent.core.policies.spec import PolicySpec, check_spec, spec_error
from schedagent.core.policies.spec_reader import spec_table

INCLUDE = BPF / "include"
_SPEC_HEAD = "/*\n * The spec that this was composed from:"
_SPEC_WIDTH = 76
_IDENTIFIER = re.compile(r"\b[a-z_]\w*\b", re.ASCII)
_COMMENT = re.compile(r"/\*.*?\*/|\"[^\"\n]*\"", re.DOTALL)


@dataclass(frozen=True)
class Composed:
    """A policy as its two files.

    Args:
        name: of the policy; the files are NAME.bpf.c and NAME.toml.
        source: BPF C.
        toml: what kernel_bpf.policies.library reads beside it.
    """

    name: str
    source: str
    toml: str


def compose(spec: PolicySpec) -> Composed:
    """Return the policy that a spec describes; raise SpecError naming the fields that cannot be as they are."""
    check_spec(spec)
    code = [*predicates(spec), *callbacks(spec)]
    _check_prefix(spec.name, _defined(code))
    parts = [
        f"/* SPDX-License-Identifier: GPL-2.0-only */\n{comment(header(spec))}\n{includes(spec)}",
        _class_numbers(spec),
        *map(_tunable, settings(spec)),
        *code,
        ops_struct(spec),
        _carried(spec),
    ]
    return Composed(spec.name, "\n\n".join(parts) + "\n", documentation(spec))


def _defined(code: Iterable[str]) -> set[str]:
    """The functions of the source that are no callbacks."""
    return set(re.findall(r"^static __always_inline \w+ (\w+)\(", "\n".join(code), re.MULTILINE))


def _check_prefix(name: str, defined: set[str]) -> None:
    """Raise SpecError if the ops struct or a callback would be called like something that exists."""
    taken = header_words() | defined
    clash = next((word for word in (name, *(f"{name}_{member}" for member in MEMBERS)) if word in taken), "")
    if clash:
        raise spec_error([f"name = {name!r}: {clash} exists already in the policy's headers; choose another"])


@functools.cache
def header_words() -> frozenset[str]:
    """Every word of the headers that a policy includes, their comments left out."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(INCLUDE.glob("*.h")))
    return frozenset(word for text in texts for word in _IDENTIFIER.findall(_COMMENT.sub("", text)))


def _carried(spec: PolicySpec) -> str:
    """The spec as a comment, so that whoever has the source can compose it again and compare; see carried_spec."""
    text = json.dumps(spec_table(spec), separators=(",", ":"))
    text = text.replace("*/", "*\\/").replace("/*", "\\/*").replace(" ", "\\u0020")
    lines = (text[at : at + _SPEC_WIDTH] for at in range(0, len(text), _SPEC_WIDTH))
    return "\n".join([_SPEC_HEAD, *(f" * {line}" for line in lines), " */"])


def carried_spec(source: str) -> object:
    """Return the table of the spec that a composed source carries at its end; raise ValueError if it carries none."""
    _before, head, comment_lines = source.rpartition(f"{_SPEC_HEAD}\n")
    if not head:
        raise ValueError("no spec")
    return json.loads("".join(line.removeprefix(" * ") for line in comment_lines.split("\n")[:-2]))


def _class_numbers(spec: PolicySpec) -> str:
    about = comment("The classes: a task belongs to the first that it matches.")
    members = "\n".join(f"\tCLASS_{kind.name.upper()}," for kind in spec.classes)
    return f"{about}\nenum {{\n{members}\n\tNR_CLASSES,\n}};"


def _tunable(setting: Setting) -> str:
    tunable = setting.tunable
    about = comment(f"{setting.about} {tunable.minimum} to {tunable.maximum}.")
    return f"{about}\nconst volatile {tunable.type} {tunable.name} = {tunable.default};"
