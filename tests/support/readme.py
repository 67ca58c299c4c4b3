"""The README's commands: its blocks of shell, line by line."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Return every command of the README's shell blocks, without its comment."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
