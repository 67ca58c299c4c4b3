"""The policy library: what each `<name>.toml` documents beside its `<name>.bpf.c`.

Writing one is the business of kernel_bpf.policies.manifest.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from kernel_bpf import BPF
from schedagent.core.errors import PolicyError, UsageError
from schedagent.core.policies.embedded import is_program
from schedagent.core.policies.policy import DECLARABLE, READABLE, PolicyInfo, Tunable
from schedagent.core.policies.rodata import Rodata, read_rodata
from schedagent.core.trials.workload import WorkloadClass

POLICIES = BPF / "policies"
TUNABLE_TYPES = ("u32", "u64", "s32", "s64", "bool")
UNITS = ("ns", "us", "ms", "percent", "tasks", "ratio", "none")
INPUTS = ("history", "classes")
CLASS_NUMBERS = range(1 << 32)
"""What the map task_class may hold."""

_SUFFIXES = (".bpf.c", ".c", ".bpf.o", ".o")
_Value = TypeVar("_Value")


def load_library(folder: Path = POLICIES) -> dict[str, PolicyInfo]:
    """Return every documented policy of a folder by name, sorted; raise PolicyError if one is badly documented."""
    policies = [_read(path, path.with_suffix(".bpf.c")) for path in sorted(folder.glob("*.toml"))]
    return {policy.name: policy for policy in policies}


def find_policy(name: str, library: Mapping[str, PolicyInfo]) -> PolicyInfo:
    """Return a policy of a library; raise UsageError naming those that exist."""
    if name in library:
        return library[name]
    close = difflib.get_close_matches(name, library, n=1)
    suggestion = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"no policy {name!r} in the library", f"{suggestion}there are: {', '.join(library) or 'none'}")


def policy_from_file(source: Path) -> PolicyInfo:
    """Describe a policy outside the library, source, object, or program that holds one: by the .toml beside it, else by
    its file name alone.

    Raises:
        UsageError: the file is not there, or its name cannot be a policy name.
        PolicyError: the .toml is malformed.
    """
    suffix = next((suffix for suffix in _SUFFIXES if source.name.endswith(suffix)), "")
    if not source.is_file():
        raise UsageError(f"policy {source} is not there, or no regular file")
    name = source.name.removesuffix(suffix)
    if not suffix and is_program(source):  # which may hold an object: /usr/bin/scx_bpfland
        name, suffix = re.sub(r"\W", "_", name, flags=re.ASCII), "program"
    if not suffix or not name.isidentifier() or not name.isascii():
        raise UsageError(f"{source.name!r} does not name a policy", "call it like a C identifier: my_policy.bpf.c")
    documentation = source.with_name(f"{name}.toml")
    if documentation.is_file():
        return _read(documentation, source)
    about = f"{source.name}, not documented"
    return PolicyInfo(name, about, (), "unknown", "unknown", (), (), source, documented=False)


def _read(path: Path, source: Path) -> PolicyInfo:
    """Read one policy's documentation; raise PolicyError telling file and field of the first mistake."""
    try:
        policy = read_manifest(path.read_text(encoding="utf-8"), path.name, source)
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path.name} is not valid TOML: {error}") from None
    if path.stem != policy.name:
        raise PolicyError(f"{path.name}: name is {policy.name!r}", f"call it {path.stem!r} like its file")
    if not source.is_file():
        raise PolicyError(f"{path.name} documents {source.name}, which is not there")
    return policy


def read_manifest(text: str, where: str, source: Path) -> PolicyInfo:
    """Return the policy that a manifest documents; its source at `source` is not read.

    Args:
        where: name of the manifest, for messages.

    Raises:
        PolicyError: telling the field of the first mistake.
    """
    try:
        table = _Table(tomllib.loads(text), where)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{where} is not valid TOML: {error}") from None
    policy = PolicyInfo(
        name=table.take("name", str),
        description=table.take("description", str),
        target_workloads=table.take_words("target_workloads", [kind.value for kind in WorkloadClass]),
        algorithm=table.take("algorithm", str),
        limitations=table.take("limitations", str),
        inputs=table.take_words("inputs", INPUTS, default=()),
        declares=table.take_words("declares", DECLARABLE, default=()),
        reads=table.take_words("reads", READABLE, default=()),
        classes=table.take_numbers("classes", CLASS_NUMBERS),
        tunables=tuple(map(_read_tunable, table.take_tables("tunables"))),
        rodata=table.take_rodata("loader"),
        source=source,
    )
    table.finish()
    if policy.classes and "classes" not in policy.inputs:
        raise PolicyError(f"{where}: classes are given, but the policy has no such input", 'inputs = ["classes"]')
    names = [tunable.name for tunable in policy.tunables]
    if len(set(names)) != len(names):
        raise PolicyError(f"{where}: a tunable is documented twice: {', '.join(names)}")
    return policy


def _read_tunable(table: _Table) -> Tunable:
    """Read one [[tunables]] entry."""
    name = table.take("name", str)
    table.where += f" {name}"
    kind = table.take_word("type", TUNABLE_TYPES)
    number = bool if kind == "bool" else int
    tunable = Tunable(
        name=name,
        type=kind,
        unit=table.take_word("unit", UNITS),
        minimum=int(table.take("min", number)),
        maximum=int(table.take("max", number)),
        default=int(table.take("default", number)),
        effect=table.take("effect", str),
    )
    table.finish()
    if not tunable.minimum <= tunable.default <= tunable.maximum:
        raise PolicyError(
            f"{table.where}: default {tunable.default} is not between {tunable.minimum} and {tunable.maximum}"
        )
    return tunable


class _Table:
    """A TOML table whose keys are taken one by one, so that missing, mistyped and unknown keys are all noticed."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self.where = where

    def take(self, key: str, kind: type[_Value]) -> _Value:
        """Return the value of a key; a bool may be written 0 or 1, and no other kind is converted."""
        if key not in self._values:
            raise PolicyError(f"{self.where}: {key!r} is missing")
        value = self._values.pop(key)
        if kind is bool and type(value) is int and value in (0, 1):
            value = bool(value)
        if type(value) is not kind:
            raise PolicyError(f"{self.where}: {key} = {value!r} is not of type {kind.__name__}")
        if value == "":
            raise PolicyError(f"{self.where}: {key} is empty")
        checked: _Value = value
        return checked

    def take_word(self, key: str, accepted: tuple[str, ...]) -> str:
        """Return a word of a fixed set."""
        return self._accept(key, self.take(key, str), accepted)

    def take_words(
        self, key: str, accepted: tuple[str, ...] | list[str], default: tuple[str, ...] | None = None
    ) -> tuple[str, ...]:
        """Return a list of words of a fixed set; `default` if the key is missing."""
        if default is not None and key not in self._values:
            return default
        return tuple(self._accept(key, word, accepted) for word in self.take(key, list))

    def take_numbers(self, key: str, accepted: range) -> tuple[tuple[str, int], ...]:
        """Return a table of words with a number each; empty if the key is missing."""
        numbers = self._values.pop(key, {})
        if not isinstance(numbers, dict):
            raise PolicyError(f"{self.where}: {key} must be a table: word = number")
        for word, number in numbers.items():
            if type(number) is not int or number not in accepted:
                raise PolicyError(f"{self.where}: {key} has {word!r} = {number!r}, not a class number")
        return tuple(numbers.items())

    def take_rodata(self, key: str) -> Rodata:
        """Return what the policy's own loader would set; nothing if the key is missing."""
        values = self._values.pop(key, {})
        if not isinstance(values, dict):
            raise PolicyError(f"{self.where}: {key} must be tables: [{key}.rodata], [{key}.ops]")
        try:
            return read_rodata(values, f"{self.where}: {key}")
        except UsageError as error:
            raise PolicyError(error.message, error.hint) from None

    def take_tables(self, key: str) -> list[_Table]:
        """Return an array of tables; empty if the key is missing."""
        entries = self._values.pop(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise PolicyError(f"{self.where}: {key} must be tables: [[{key}]]")
        return [_Table(entry, f"{self.where}: {key}[{number}]") for number, entry in enumerate(entries)]

    def finish(self) -> None:
        """Refuse what was not taken: a misspelt key must not be lost silently."""
        if self._values:
            raise PolicyError(f"{self.where}: unknown key {', '.join(map(repr, self._values))}")

    def _accept(self, key: str, word: Any, accepted: tuple[str, ...] | list[str]) -> str:
        if word not in accepted:
            raise PolicyError(f"{self.where}: {key} has {word!r}", f"accepted: {', '.join(accepted)}")
        return str(word)
