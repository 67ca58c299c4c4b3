"""What one of our processes answers another: whatever words of others are in it, each text is one printable line."""

from __future__ import annotations

from typing import Any

from schedagent.core.terminal.foreign import one_line

LONGEST_TEXT = 4000
"""Characters of any text in an answer."""


def plain(value: Any) -> Any:
    """Return a value of JSON in which every text, keys too, is one printable line of bounded length."""
    match value:
        case str():
            short = len(value) <= LONGEST_TEXT and value.isprintable()
            return value if short else one_line(value, LONGEST_TEXT)
        case dict():
            return {plain(key): plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [plain(entry) for entry in value]
    return value
