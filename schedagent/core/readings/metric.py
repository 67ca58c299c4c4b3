"""Reading a number out of a run's output: the match that counts, the number as printed, its unit. Pure.

Output is foreign text: it may hold colours, NUL bytes, megabytes, and a line on which an expression backtracks without
end. So an expression has `LIMIT_S`, and whatever is not surely a number is refused with the text around it.

Numbers of one metric are compared with each other, so they are brought to one unit: seconds for times, plain counts
for everything with or without a decimal prefix. A unit that changes in kind between runs (seconds in one, a count in
the other) is refused, and so is a comma that stands for thousands in one run and for decimals in another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean
from typing import Any, NamedTuple

import regex

from schedagent.core.errors import MetricError
from schedagent.core.process.shell_text import quoted

LIMIT_S = 5.0
"""Longest CPU time of one expression on the output of one run: on 1 MiB a sane one takes hundredths of a second."""

AROUND_CHARS = 80
"""Longest text around a match that is shown."""

FAILURE_OUTPUT_LINES = 25

UNIT_GROUP = "unit"
"""Name of the group that finds a unit which does not follow its number: `lat \\((?P<unit>\\w+)\\): avg=([0-9.]+)`."""

_CHOICES: Mapping[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "max": ("the largest", max),
    "min": ("the smallest", min),
    "sum": ("the sum", math.fsum),
    "mean": ("the mean", fmean),
    "gmean": ("the geometric mean", geometric_mean),
}
"""Names of the number's group that say which of several matches counts; with any other, the one nearest the end."""

_ESCAPE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")
"""Terminal sequences, ECMA-48: CSI, OSC (kept to its line if it does not end), and the short ones."""

_NUMBER_CHARS = 64
_SPACES = "\u00a0\u2009\u202f"
"""No-break, thin and narrow no-break space: printed between groups of digits, hardly ever between columns."""

_NUMBER = re.compile(
    rf"""[+-]?(?:
    (?P<grouped>[1-9]\d{{0,2}}(?:(?P<mark>[,'])\d{{3}})(?:(?P=mark)\d{{3}})*(?:\.\d+)?)
    |(?P<spaced>[1-9]\d{{0,2}}(?:[{_SPACES}]\d{{3}})+(?:[.,]\d+)?)
    |(?P<dotted>[1-9]\d{{0,2}}(?:(?:\.\d{{3}}){{2,}}(?:,\d+)?|\.\d{{3}},\d+))
    |(?P<decimal>\d+,\d+)
    |(?P<plain>\d+(?:_\d+)*(?:\.\d*)?|\.\d+)
    )(?:[eE][+-]?\d+)?(?!\d)""",
    re.VERBOSE | re.ASCII,
)
_MORE_NUMBER = re.compile(r"[,.:_']\d", re.ASCII)
_SPACED_GROUP = re.compile(r"(?: \d{3})+(?![\w.,:%]| \d)", re.ASCII)
_FIRST_GROUP = re.compile(r"[1-9]\d{0,2}", re.ASCII)
_SPACED_NUMBER = re.compile(r"[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d+)?", re.ASCII)

_UNIT = re.compile(rf"(?P<space>[ \t{_SPACES}]?)(?P<word>%|[A-Za-z\u00b5\u03bc]+)(?P<per>/[A-Za-z]+)?")

_SECONDS: Mapping[str, float] = {
    **dict.fromkeys(("ns", "nsec", "nsecs", "nanosec", "nanosecs", "nanosecond", "nanoseconds"), 1e-9),
    **dict.fromkeys(("us", "\u00b5s", "\u03bcs", "usec", "usecs", "microsec", "microsecs"), 1e-6),
    **dict.fromkeys(("microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ms", "msec", "msecs", "millis", "millisec", "millisecs", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
}
_PREFIX = {"": 1.0} | {
    letter + binary: float((1024 if binary else 1000) ** power)
    for power, letters in enumerate(("kK", "M", "G", "T", "P"), 1)
    for letter in letters
    for binary in ("", "i")
}
_SIZE = re.compile(r"(?P<prefix>[kKMGTP]i?)?(?P<base>B|[bB]ytes?|b|[bB]its?)(?:ps)?")
_COUNT = re.compile(
    r"(?P<prefix>[kKMGTP]i?)?(?P<base>[rtq]ps|(?:i?op|req|request|hit|event|call|transaction)s?)?", re.I
)

SECONDS, COUNT, PERCENT = "s", "", "%"
_KINDS = {SECONDS: "seconds", COUNT: "a count", PERCENT: "per cent", "B": "bytes", "bit": "bits"}


@dataclass(frozen=True)
class Reading:
    """One number that was found in an output.

    Args:
        value: in base units; above 0: half of the last printed digit stands for a zero, which has no ratio.
        kind: what it counts: SECONDS, COUNT, PERCENT, "B", "bit", or a word that followed it and is no unit we know.
        zero: whether a zero was printed.
        comma: what a comma in it was taken for: "thousands", "decimals", or "" without one.
        around: the line it stood in, or the part around it.
        matches: how often the expression matched.
        choice: which of them counts, in words.
    """

    value: float
    kind: str
    zero: bool
    comma: str
    around: str
    matches: int = 1
    choice: str = "the last one"

    @property
    def shown(self) -> str:
        """What was read, and where, for people: read 1.21 ms from: `p99 latency: 1.21ms`."""
        sentence = f"read {figure(self.value, self.kind)} from: `{self.around}`"
        if self.zero:
            sentence = (
                f"read 0 from: `{self.around}`; {figure(self.value, self.kind)}, half of its last digit, stands for it"
            )
        return f"{sentence} (matched {self.matches} times; {self.choice} counts)" if self.matches > 1 else sentence


class _Number(NamedTuple):
    """A number as it stands in a text.

    Args:
        value: without its unit.
        step: what its last digit is worth.
        comma: see Reading.
        end: where it ends in the text.
    """

    value: float
    step: float
    comma: str
    end: int


class _Unit(NamedTuple):
    """A unit: what a number is multiplied with, what it then counts, and where the unit ends in the text."""

    factor: float
    kind: str
    end: int


def problem_of(expression: str, *, group_needed: bool = False) -> tuple[str, str]:
    """Return what is wrong with an expression, and what to do about it; two empty texts if nothing is.

    Args:
        group_needed: whether it has to have a group; else its whole match may be the number.
    """
    try:
        compiled = _compiled(expression)
    except (regex.error, OverflowError, RecursionError, ValueError) as error:
        return f"is not a regular expression: {error}", "quote it for the shell"
    groups = compiled.groups - (UNIT_GROUP in compiled.groupindex)
    if groups > 1:
        hint = f"put ( ) around the one number; use (?: ) elsewhere, and (?P<{UNIT_GROUP}> ) around a unit"
        return f"has {groups} groups", hint
    if group_needed and groups == 0:
        return "has no group that finds a number", "put ( ) around the number, for example 'p99: ([0-9.]+)'"
    return "", ""


def clean(output: str) -> str:
    """Return an output as expressions see it: without a terminal's sequences, each line and progress line on its own.

    A carriage return begins the line again, so what stood there before is a line of its own, not part of the next.
    """
    return _ESCAPE.sub("", output).replace("\r\n", "\n").replace("\r", "\n")


def find(expression: str, text: str, name: str) -> Reading | None:
    """Return the number an expression finds; None if it does not match.

    Args:
        expression: checked by `problem_of`.
        text: see `clean`.
        name: what is read, as the user knows it, for errors.

    Raises:
        MetricError: the expression ran into its time limit, or what it found is no number that can be compared.
    """
    compiled = _compiled(expression)
    number = _number_group(compiled)
    chosen = _CHOICES.get(number) if isinstance(number, str) else None
    readings: list[Reading] = []
    match, count = None, 0
    try:
        for match in compiled.finditer(text, timeout=LIMIT_S):
            count += 1
            if chosen:
                readings.append(_reading(match, number, text, name))
    except TimeoutError:
        raise _too_long(name, expression) from None
    if match is None:
        return None
    last = readings[-1] if readings else _reading(match, number, text, name)
    if not chosen:
        return replace(last, matches=count)
    words, function = chosen
    _same_units(readings, name)
    value = function([reading.value for reading in readings])
    shown = next((reading for reading in readings if reading.value == value), last)
    return replace(shown, value=value, matches=count, choice=words)


def every(expression: str, text: str, name: str) -> tuple[int, tuple[float, ...]]:
    """Return how often an expression matches, and the number of each match; no numbers if it has no group.

    Args:
        expression, text, name: as `find` has them.

    Raises:
        MetricError: as `find`, or the numbers have several units.
    """
    compiled = _compiled(expression)
    reads = compiled.groups > (UNIT_GROUP in compiled.groupindex)
    readings: list[Reading] = []
    count = 0
    try:
        for match in compiled.finditer(text, timeout=LIMIT_S):
            count += 1
            if reads:
                readings.append(_reading(match, _number_group(compiled), text, name))
    except TimeoutError:
        raise _too_long(name, expression) from None
    if readings:
        _same_units(readings, name)
    return count, tuple(reading.value for reading in readings)


def search(expression: str, text: str) -> bool:
    """Return whether an expression matches anywhere; raise MetricError if it takes too long."""
    try:
        return _compiled(expression).search(text, timeout=LIMIT_S) is not None
    except TimeoutError:
        raise _too_long("the search", expression) from None


def unmatched(name: str, expression: str, output: str) -> MetricError:
    """Return the error that says that an expression found nothing."""
    return MetricError(
        f"{name} {quoted(expression)} matched nothing in the workload's output\n" + last_lines(output),
        "the expression is searched in stdout and stderr; its first group must be the number",
    )


def last_lines(output: str) -> str:
    """The end of a workload's output, indented, for an error message."""
    lines = output.splitlines()[-FAILURE_OUTPUT_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"


class Units:
    """Remembers how each number was printed first, and refuses one that is printed otherwise later."""

    def __init__(self) -> None:
        self._first: dict[str, Reading] = {}
        self._comma: dict[str, Reading] = {}

    def check(self, name: str, reading: Reading) -> Reading:
        """Return the reading.

        Raises:
            MetricError: its unit is of another kind than before, or its comma means something else.
        """
        first = self._first.setdefault(name, reading)
        if first.kind != reading.kind:
            raise _changed(name, first, reading, _words(first.kind), _words(reading.kind))
        if reading.comma:
            before = self._comma.setdefault(name, reading)
            if before.comma != reading.comma:
                raise _changed(
                    name, before, reading, f"a comma before {before.comma}", f"a comma before {reading.comma}"
                )
        return reading


def figure(value: float, kind: str) -> str:
    """Return a value in base units as people write it: 0.00121 s is 1.21 ms."""
    if kind != SECONDS:
        return f"{value:.7g} {_KINDS.get(kind, kind) if kind in ('B', 'bit') else kind}".rstrip()
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= size:
            return f"{value / size:.6g} {unit}"
    return f"{value / 1e-9:.6g} ns"


# --- the parts of a reading -------------------------------------------------------------------------------------------


def _compiled(expression: str) -> Any:
    return regex.compile(expression, regex.MULTILINE)


def _number_group(compiled: Any) -> str | int:
    """Return the group that holds the number: the one that is not the unit's, or the whole match."""
    names: dict[int, str] = {index: name for name, index in compiled.groupindex.items()}
    for index in range(1, compiled.groups + 1):
        if names.get(index) != UNIT_GROUP:
            return names.get(index, index)
    return 0


def _reading(match: Any, group: str | int, text: str, name: str) -> Reading:
    printed = match.group(group)
    start, end = match.span(group)
    around = _around(text, match.start(), max(start, match.start()), max(end, match.start()))
    if not (printed and printed.strip()):
        raise _no_number(name, printed, around)
    start += len(printed) - len(printed.lstrip())
    end -= len(printed) - len(printed.rstrip())
    continues = match.end() > match.end(group)
    number = _parse(text, start, end, ends=continues)
    if number is None:
        raise _no_number(name, printed, around)
    unit = _unit(text, number)
    if text[max(unit.end, number.end) : end].strip() or _negative(text, start) or not math.isfinite(number.value):
        raise _no_number(name, printed, around)
    if continues:
        _refuse_part(text, start, end, name, around)
    else:
        _refuse_more(text, start, number.end, name, around)
    value, step = _compound(text, number, unit)
    factor, kind = _with_heading(match, unit)
    if factor is not None:
        value, step = number.value * factor, number.step * factor
    zero = value == 0
    return Reading(step / 2 if zero else value, kind, zero, number.comma, around)


def _parse(text: str, start: int, end: int, *, ends: bool) -> _Number | None:
    """Return the number that begins at `start`, None if there is none.

    It may reach beyond the group that found its beginning: ([0-9.]+) finds 1 in 1,234.5, and 1 in 1e-3. If the
    expression itself continues after the group (`ends`), it has said where the number ends: `total,([0-9]+),`.
    """
    inside = text[start:end]
    if _SPACED_NUMBER.fullmatch(_ascii(inside)):  # a plain space only counts where the expression took it in
        joined = _ascii(inside).replace(" ", "")
        return _Number(float(joined.replace(",", ".")), _step(joined.replace(",", "."), 0), "", end)
    stretch = _ascii(text[start : end if ends else max(end, start + _NUMBER_CHARS)])
    listed = text[start - 1 : start] in (",", ";")  # a,5,100: the commas part columns
    match = _NUMBER.match(stretch.split(",", 1)[0] if listed else stretch)
    if match and _MORE_NUMBER.match(stretch, match.end()) and (match["grouped"] or match["decimal"]):
        match = _NUMBER.match(stretch.split(",", 1)[0])  # 5,100,7: a list, too
    return _as_number(match, start) if match else None


def _as_number(match: re.Match[str], start: int) -> _Number:
    """Return what a number is worth.

    1,234 could be either. English tools group thousands with commas; a decimal comma comes only from a locale, and
    then most numbers show it (0,998 and 12,5 are no groups of three). So 1,234 is 1234. Were that wrong, all runs
    would be wrong by the same factor, which no ratio shows; a run that then prints 0,998 changes the meaning of the
    comma, and is refused (`Units`).
    """
    digits, _, exponent = match.group().lower().partition("e")
    comma = ""
    if match["grouped"]:
        digits = digits.replace(match["mark"], "")
        comma = "thousands" if match["mark"] == "," else ""
    elif match["spaced"]:
        digits = re.sub(rf"[{_SPACES}]", "", digits).replace(",", ".")
        comma = "decimals" if "," in match.group() else ""
    elif match["dotted"]:
        digits = digits.replace(".", "").replace(",", ".")
        comma = "decimals" if "," in match.group() else ""
    elif match["decimal"]:
        digits = digits.replace(",", ".")
        comma = "decimals"
    digits = digits.replace("_", "")
    power = int(exponent or 0) if len(exponent) <= 5 else 9999
    try:
        value = float(f"{digits}e{power}")
    except (OverflowError, ValueError):
        value = math.inf
    return _Number(value, _step(digits, power), comma, start + match.end())


def _step(digits: str, power: int) -> float:
    """Return what the last digit of a number is worth."""
    decimals = len(digits.partition(".")[2])
    return math.pow(10, power - decimals) if -300 < power - decimals < 300 else math.nan


def _ascii(text: str) -> str:
    """Return a text with the decimal digits and marks of every script as ASCII, character by character.

    U+066B and U+066C are the Arabic decimal and thousands separators, U+2212 is the minus sign.
    """
    if text.isascii():
        return text
    marks = {"\u066b": ".", "\u066c": "_", "\u2212": "-"}
    return "".join(marks.get(char, str(int(char)) if char.isdecimal() else char) for char in text)


def _unit(text: str, number: _Number) -> _Unit:
    """Return the unit right after a number, with at most one space between them."""
    match = _UNIT.match(text, number.end)
    if match is None:
        return _Unit(1.0, COUNT, number.end)
    word, attached = match["word"], not match["space"]
    known = _known(word)
    after = text[match.end("word") : match.end("word") + 1]
    if not attached and after in (":", "="):
        return _Unit(1.0, COUNT, number.end)  # a label of what follows: C: 500 Min: 27
    if known and not (after.isalpha() or after == "_" or (after.isdigit() and not (known[1] == SECONDS and attached))):
        return _Unit(*known, match.end("word") + len(match["per"] or ""))
    if attached and not after.isdigit():
        return _Unit(1.0, word, match.end("word"))  # 5krps beside 980rps: not known, so at least never mixed
    return _Unit(1.0, COUNT, number.end)


def _known(word: str) -> tuple[float, str] | None:
    """Return factor and kind of a unit, None for a word that is none."""
    if word == "%":
        return 1.0, PERCENT
    seconds = _SECONDS.get(word if len(word) == 1 else word.lower())
    if seconds is not None:
        return seconds, SECONDS
    if size := _SIZE.fullmatch(word):
        # A prefix of 1000: some tools mean 1024, and a number that crosses the prefix is then off by 2 %.
        return _PREFIX[size["prefix"] or ""], "B" if size["base"].startswith(("B", "byte")) else "bit"
    count = _COUNT.fullmatch(word)
    if count and (count["prefix"] or "") in _PREFIX:
        return _PREFIX[count["prefix"] or ""], COUNT
    return None


def _compound(text: str, number: _Number, unit: _Unit) -> tuple[float, float]:
    """Return value and step of a number in base units; a time may continue in smaller units: 1m2.5s."""
    value, step = number.value * unit.factor, number.step * unit.factor
    factor, end = unit.factor, unit.end
    while unit.kind == SECONDS and text[end : end + 1].isdigit():
        part = _parse(text, end, end + 1, ends=False)
        if part is None:
            break
        following = _unit(text, part)
        if following.kind != SECONDS or following.factor >= factor:
            break
        value, step = value + part.value * following.factor, part.step * following.factor
        factor, end = following.factor, following.end
    return value, step


def _with_heading(match: Any, unit: _Unit) -> tuple[float | None, str]:
    """Return factor and kind by the unit that the expression found elsewhere; None if it found none."""
    word = match.groupdict().get(UNIT_GROUP)
    if not word:
        return None, unit.kind
    factor, kind = _known(word.strip()) or (1.0, word.strip())
    return (factor * unit.factor, kind) if unit.kind in (COUNT, kind) else (None, unit.kind)


def _negative(text: str, start: int) -> bool:
    """Whether a minus stands before a number; after a word or another number it is a hyphen."""
    if text[start : start + 1] in "-\u2212":
        return True
    return text[start - 1 : start] in ("-", "\u2212") and not text[max(0, start - 2) : start - 1].isalnum()


def _refuse_part(text: str, start: int, end: int, name: str, around: str) -> None:
    """Refuse the beginning of a number of which the expression skips the rest: ([0-9.]+).* finds 1 in 1,234.5."""
    whole = _parse(text, start, end, ends=False)
    if whole and whole.end > end:
        raise MetricError(
            f"{name} found {text[start:end]!r}, the beginning of {text[start : whole.end]!r}, in: `{around}`",
            "end the expression with its group, or take all of the number into the group, as in ([0-9.,e-]+)",
        )


def _refuse_more(text: str, start: int, end: int, name: str, around: str) -> None:
    """Refuse a number that seems to continue in a way nobody can be sure of."""
    following = _ascii(text[end : end + _NUMBER_CHARS])
    if following[:1] == ":" and following[1:2].isdigit():
        raise MetricError(
            f"{name} found a time of the clock, which it cannot read, in: `{around}`", "have the seconds printed"
        )
    if _FIRST_GROUP.fullmatch(_ascii(text[start:end])) and _SPACED_GROUP.match(following):
        raise MetricError(
            f"{name} cannot tell whether the spaces group the digits of one number or part several, in: `{around}`",
            "take the spaces into the group, ([0-9 ]+), or write behind it what follows the number",
        )


def _same_units(readings: Sequence[Reading], name: str) -> None:
    units = Units()
    for reading in readings:
        units.check(name, reading)


def _changed(name: str, first: Reading, now: Reading, before: str, after: str) -> MetricError:
    return MetricError(
        f"{name} was {before} in one place (`{first.around}`) and {after} in another (`{now.around}`), "
        "so they cannot be compared",
        "have the workload print it in one unit and one form",
    )


def _too_long(name: str, expression: str) -> MetricError:
    return MetricError(
        f"{name}: the expression {quoted(expression)} took more than {LIMIT_S:g} s on the output of one run",
        "it backtracks: do not repeat what is repeated already, as in (a+)+, and begin with fixed text",
    )


def _no_number(name: str, printed: str | None, around: str) -> MetricError:
    return MetricError(
        f"{name} matched {_short(printed)}, which is not a number from 0 up, in: `{around}`",
        "put ( ) around the number; a ratio needs numbers that are neither negative nor infinite",
    )


def _short(printed: str | None) -> str:
    return repr(printed if printed is None or len(printed) <= AROUND_CHARS else printed[:AROUND_CHARS] + "…")


def _words(kind: str) -> str:
    return _KINDS.get(kind) or f"in {kind!r}"


def _around(text: str, begin: int, start: int, end: int) -> str:
    """Return the line in which a number stands, cut to what is around it."""
    line_start, line_end = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    if line_end - line_start <= AROUND_CHARS:
        return text[line_start:line_end].strip()
    begin = max(line_start, min(begin, start), end - AROUND_CHARS * 3 // 4)
    stop = min(line_end, begin + AROUND_CHARS)
    left, right = "…" * (begin > line_start), "…" * (stop < line_end)
    return left + text[begin:stop].strip() + right
