"""From a spec in a file, TOML or JSON, to a policy in its two files: what `schedagent compose` does."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from kernel_bpf.policies.compose import Composed, compose
from schedagent.core.errors import UsageError
from schedagent.core.policies.spec_reader import read_spec

SPEC_LIMIT_BYTES = 64 * 1024


def compose_file(path: Path) -> Composed:
    """Return the policy of a spec file: JSON if its name ends so, else TOML.

    Raises:
        UsageError: the file cannot be read, or is neither.
        SpecError: what it describes cannot be composed.
    """
    try:
        with path.open("rb") as file:
            text = file.read(SPEC_LIMIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"spec {path} cannot be read: {error.strerror}") from None
    if len(text) > SPEC_LIMIT_BYTES:
        raise UsageError(f"spec {path} is too long: at most {SPEC_LIMIT_BYTES} bytes are accepted")
    try:
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise UsageError(f"spec {path} is not valid {kind}: {error}") from None
    return compose(read_spec(table))


def write_policy(composed: Composed, folder: Path) -> tuple[Path, ...]:
    """Write NAME.bpf.c and NAME.toml into a folder; raise UsageError if files of other content are there."""
    files = {folder / f"{composed.name}.bpf.c": composed.source, folder / f"{composed.name}.toml": composed.toml}
    for path, text in files.items():
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise UsageError(f"{path} exists already, with other content", "remove it, or give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return tuple(files)
