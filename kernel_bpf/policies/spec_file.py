"""From a spec in a file, TOML or JSON, to a policy in its two files: what `schedagent compose` does."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

from kernel_bpf.policies.compose import Composed, compose
from schedagent.core.errors import UsageError
from schedagent.core.policies.spec_reader import read_spec

SPEC_LIMIT_BYTES = 64 * 1024
STDIN = Path("-")


def compose_file(path: Path) -> Composed:
    """Return the policy of a spec file: JSON if its name ends so, else TOML; - is stdin, and JSON if it begins with {.

    Raises:
        UsageError: the file cannot be read, or is neither.
        SpecError: what it describes cannot be composed.
    """
    shown = "of stdin" if path == STDIN else path
    try:
        with sys.stdin.buffer if path == STDIN else path.open("rb") as file:
            text = file.read(SPEC_LIMIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"spec {shown} cannot be read: {error.strerror}") from None
    if len(text) > SPEC_LIMIT_BYTES:
        raise UsageError(f"spec {shown} is too long: at most {SPEC_LIMIT_BYTES} bytes are accepted")
    is_json = path.suffix == ".json" or (path == STDIN and text.lstrip().startswith(b"{"))
    try:
        table = json.loads(text) if is_json else tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"spec {shown} is not valid {'JSON' if is_json else 'TOML'}: {error}") from None
    return compose(read_spec(table))


def write_policy(composed: Composed, folder: Path, spec: Path) -> tuple[Path, ...]:
    """Write NAME.bpf.c and NAME.toml into a folder, or into its subfolder NAME if NAME.toml is the spec itself.

    Raises:
        UsageError: files of other content are there.
    """
    if spec.exists() and (folder / f"{composed.name}.toml").resolve() == spec.resolve():
        folder = folder / composed.name
    files = {folder / f"{composed.name}.bpf.c": composed.source, folder / f"{composed.name}.toml": composed.toml}
    for path, text in files.items():
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise UsageError(f"{path} exists already, with other content", "give another folder: --output DIR")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return tuple(files)
