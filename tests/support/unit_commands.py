"""What a systemd unit of deploy/systemd executes, as words that a test can execute too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"


def command(unit, key="ExecStart"):
    """Return the words of a unit's one command, without the quoting of systemd.service(5)."""
    text = re.sub(r"\\\n\s*", " ", (UNITS / unit).read_text())
    [line] = re.findall(rf"(?m)^{key}=(.+)$", text)
    return [word.replace("$$", "$").replace("%%", "%") for word in shlex.split(line)]
