"""Applying a unified diff to one text, strictly: context must be there to the letter, and nothing is guessed.

What models get wrong without meaning anything by it is let pass: line numbers and counts of `@@` lines, and the missing
space of an empty context line. Libraries were looked at: those that take wrong line numbers also take wrong context
(GNU patch's fuzz), and put a change where nobody meant it.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from schedagent.core.errors import PolicyError

MOST_LINES = 1000
"""Of a diff: what changes more is better written again. It also bounds the search for a place."""

_HEADER = re.compile(r"@@\s+-(\d{1,9})(?:,\d+)?\s+\+\d", re.ASCII)
_SHOWN = 100


@dataclass(frozen=True)
class Line:
    """One line of a hunk.

    Args:
        number: in the diff, from 1.
        mark: " ", "-" or "+".
        text: without the mark.
    """

    number: int
    mark: str
    text: str


@dataclass(frozen=True)
class Hunk:
    """One change.

    Args:
        number: which of the diff, from 1.
        start: line of the source, from 1, that its header names; 0 if it names none.
        lines: all of it.
    """

    number: int
    start: int
    lines: tuple[Line, ...]

    @property
    def old(self) -> list[Line]:
        """What must be there."""
        return [line for line in self.lines if line.mark != "+"]

    @property
    def new(self) -> list[str]:
        """What stands there afterwards."""
        return [line.text for line in self.lines if line.mark != "-"]

    @property
    def where(self) -> str:
        """For messages."""
        return f"hunk {self.number} (line {self.lines[0].number - 1} of the diff)"


def apply_diff(source: str, diff: str) -> str:
    """Return the source with all hunks applied, in their order.

    Raises:
        PolicyError: with the hunk and the line where it failed, and what stands there instead.
    """
    lines = source.split("\n")
    done: list[str] = []
    end = 0
    for hunk in read_diff(diff):
        start = _find(lines, hunk, end)
        done += [*lines[end:start], *hunk.new]
        end = start + len(hunk.old)
    return "\n".join([*done, *lines[end:]])


# --- reading


def read_diff(diff: str) -> list[Hunk]:
    """Return the hunks of a diff of one file; raise PolicyError if it is none."""
    rows = diff.removesuffix("\n").split("\n")
    if len(rows) > MOST_LINES:
        raise PolicyError(
            f"the diff has {len(rows)} lines, accepted are at most {MOST_LINES}", "write the whole policy instead"
        )
    starts = [place for place, row in enumerate(rows) if row.startswith("@@")]
    if not starts:
        raise PolicyError(
            "the diff has no hunk",
            "begin each change with a line like @@ -10,6 +10,7 @@, then context, removed (-) and added (+) lines",
        )
    ends = [*starts[1:], len(rows)]
    return [
        _read_hunk(number, rows, start, end)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1)
    ]


def _read_hunk(number: int, rows: Sequence[str], start: int, end: int) -> Hunk:
    lines = []
    for place in range(start + 1, end):
        row = rows[place]
        if row.startswith("\\"):  # "\ No newline at end of file" changes nothing here
            continue
        if row.startswith("--- ") and place + 1 < end and rows[place + 1].startswith("+++ "):
            raise PolicyError(
                f"line {place + 1} of the diff begins a second file: {row[:_SHOWN]}", "only one source can be patched"
            )
        if row[:1] not in (" ", "-", "+", "", "\t"):
            raise PolicyError(
                f"line {place + 1} of the diff, in hunk {number}, begins with none of space, - and +: {row[:_SHOWN]!r}",
                "context lines begin with a space",
            )
        # Whoever strips spaces at the end of lines, or before tabs, means context.
        bare = row[:1] in ("", "\t")
        lines.append(Line(place + 1, " " if bare else row[0], row if bare else row[1:]))
    while lines and (lines[-1].mark, lines[-1].text) == (" ", "") and rows[lines[-1].number - 1] == "":
        lines.pop()
    header = _HEADER.match(rows[start])
    hunk = Hunk(number, int(header[1]) if header else 0, tuple(lines))
    if hunk.new == [line.text for line in hunk.old]:
        raise PolicyError(f"hunk {number} (line {start + 1} of the diff) changes nothing", "leave it out")
    if not hunk.old:
        raise PolicyError(
            f"hunk {number} (line {start + 1} of the diff) has no line of context, so its place is not known",
            "give three unchanged lines before and after the change",
        )
    return hunk


# --- finding the place


def _find(lines: Sequence[str], hunk: Hunk, after: int) -> int:
    """Return the index of the first line of a hunk: where its header points, else the only place where it fits.

    Args:
        after: lines before this index are changed already.

    Raises:
        PolicyError: it fits nowhere, or in several places.
    """
    fits = _places(lines, hunk.old, after)
    if hunk.start - 1 in fits:
        return hunk.start - 1
    if len(fits) == 1:
        return fits[0]
    if fits:
        places = ", ".join(str(place + 1) for place in fits[:5])
        raise PolicyError(
            f"{hunk.where} fits in {len(fits)} places of the source: at lines {places}",
            "give the right line number in its @@ line, or more lines of context",
        )
    raise _misfit(lines, hunk, after)


def _places(lines: Sequence[str], wanted: Sequence[Line], after: int) -> list[int]:
    """Return where these lines stand in the source, by the index of the first; as text, which is fast."""
    text = "\n".join(["", *lines[after:], ""])
    pattern = "\n".join(["", *(line.text for line in wanted), ""])
    places: list[int] = []
    last, line = 0, after
    place = text.find(pattern)
    while place >= 0:
        line += text.count("\n", last, place)
        places.append(line)
        last, place = place, text.find(pattern, place + 1)
    return places


def _misfit(lines: Sequence[str], hunk: Hunk, after: int) -> PolicyError:
    """Return the error that shows how far a hunk fits, at the place where it fits best."""
    old = hunk.old
    hint = "context and removed lines must be the source's own, to the letter; hunks must be in the source's order"
    best = bisect(range(1, len(old) + 1), 0, key=lambda count: 0 if _places(lines, old[:count], after) else 1)
    wanted = old[best]
    if best == 0:
        behind = f" behind line {after}, where the hunk before it ends" if after else ""
        return PolicyError(
            f"{hunk.where} does not apply: line {wanted.number} of the diff is nowhere in the source{behind}: "
            f"{wanted.text[:_SHOWN]!r}",
            hint,
        )
    nearest = min(_places(lines, old[:best], after), key=lambda place: abs(place - (hunk.start - 1)))
    there = repr(lines[nearest + best][:_SHOWN]) if nearest + best < len(lines) else "its end"
    return PolicyError(
        f"{hunk.where} does not apply: line {wanted.number} of the diff is {wanted.text[:_SHOWN]!r}, "
        f"but line {nearest + best + 1} of the source is {there}",
        hint,
    )
