"""Numbers in a model's words: those that it was not shown are taken out before the words are stored. Pure.

A model may describe what was measured; it must not measure. Numbers in names (gcc12, p99) are no claims. Numbers that
are written as words are not found.
"""

from __future__ import annotations

import re

REMOVED = "(number removed: not measured)"

_NUMBER = re.compile(r"(?<![A-Za-z_\d])(?<!\d\.)\d+(?:\.\d+)?")


def without_claims(text: str, shown: str) -> str:
    """Return the text without the numbers that do not stand in what was shown.

    Args:
        text: a model's words.
        shown: all that the model was shown as measured.
    """
    known = {_value(number) for number in _NUMBER.findall(shown)}
    return _NUMBER.sub(lambda match: match[0] if _value(match[0]) in known else REMOVED, text)


def _value(number: str) -> float:
    return float(number)
