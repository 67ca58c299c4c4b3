"""Writing what kernel_bpf.policies.library reads: the .toml that documents a policy."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator

from schedagent.core.policies.policy import PolicyInfo, Tunable
from schedagent.core.policies.rodata import Rodata

_WIDTH = 118


def write_manifest(info: PolicyInfo) -> str:
    """Return the documentation of a policy; the same policy always gives the same text."""
    lines = [
        f"name = {_text(info.name)}",
        f"description = {_text(info.description)}",
        f"target_workloads = {_words(info.target_workloads)}",
        f"algorithm = {_long_text(info.algorithm)}",
        f"limitations = {_long_text(info.limitations)}",
        f"inputs = {_words(info.inputs)}",
    ]
    lines += [f"declares = {_words(info.declares)}"] if info.declares else []
    lines += [f"reads = {_words(info.reads)}"] if info.reads else []
    lines += [f"classes = {_numbers(info.classes)}"] if info.classes else []
    return "\n".join([*lines, *map(_entry, info.tunables), *_loader(info.rodata)]) + "\n"


def _loader(rodata: Rodata) -> Iterator[str]:
    """What the policy's own loader would set, as `read_rodata` takes it."""
    for section, values in rodata.table.items():
        if values:
            yield f"\n[loader.{section}]"
            yield from (f"{name} = {_value(value)}" for name, value in values.items())


def _value(value: int | str | list[int] | list[str]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _text(value) if isinstance(value, str) else str(value)


def _entry(tunable: Tunable) -> str:
    return (
        f"\n[[tunables]]\nname = {_text(tunable.name)}\ntype = {_text(tunable.type)}\nunit = {_text(tunable.unit)}\n"
        f"min = {_number(tunable, tunable.minimum)}\nmax = {_number(tunable, tunable.maximum)}\n"
        f"default = {_number(tunable, tunable.default)}\neffect = {_text(tunable.effect)}"
    )


def _number(tunable: Tunable, value: int) -> str:
    return str(bool(value)).lower() if tunable.type == "bool" else str(value)


def _text(text: str) -> str:
    """A basic string of TOML, whose escapes are those of JSON, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _long_text(text: str) -> str:
    wrapped = "\n".join(textwrap.wrap(text, _WIDTH, break_on_hyphens=False, break_long_words=False))
    escaped = wrapped.replace("\\", "\\\\").replace('"', '\\"')
    return f'"""\n{escaped}"""'


def _words(words: Iterable[str]) -> str:
    return "[" + ", ".join(_text(word) for word in words) + "]"


def _numbers(numbers: Iterable[tuple[str, int]]) -> str:
    return "{ " + ", ".join(f"{_text(word)} = {number}" for word, number in numbers) + " }"
