"""What the doctor says of one part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "info", "warning", "missing"]
"""info: a fact without a judgement; warning: works, but worse; missing: the main job cannot run without it."""


@dataclass(frozen=True)
class Finding:
    """One part that the doctor examined.

    Args:
        name: what was examined.
        status: see Status.
        detail: version, path or figures.
        consequence: what follows from it, if it is not well.
        remedy: what to do: a command or a change, in a short sentence.
    """

    name: str
    status: Status
    detail: str
    consequence: str = ""
    remedy: str = ""
