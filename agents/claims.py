"""Figures in a model's words: a sentence that holds one that was not measured is left out before the words are kept.

A model may describe what was measured; it must not measure. What counts as measured is typed (`Figures`): no text of a
model, a policy or a workload is ever searched for it. Figures are found in digits of every script and in English words
("forty-five percent", "twice", "a dozen"); a sentence in another script than Latin cannot be read, so it is left out
too. Numbers in names (gcc12, p99) are no figures. Pure.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum

from schedagent.core.policies.policy import PolicyInfo
from schedagent.core.trials.lesson import Lesson
from schedagent.core.trials.trial import Hardware, Outcome, Verdict
from schedagent.core.trials.workload import CommandStats, WorkloadCommand, WorkloadProfile
from schedagent.core.verification import VerificationReport

REMOVED = "(left out: a figure that was not measured)"


class Kind(StrEnum):
    """What a figure is of: a percentage that was never measured does not become true because so many tasks ran."""

    PLAIN = "plain"
    PERCENT = "percent"
    RATIO = "ratio"
    PAIRS = "pairs"


@dataclass(frozen=True)
class Figure:
    """A figure in a text.

    Args:
        value: its value; nan if it cannot be read, and then it counts as invented.
        digits: after the point: as far as a measured figure may have been rounded to become this one.
    """

    kind: Kind
    value: float
    digits: int = 0


@dataclass(frozen=True)
class Figures:
    """What was measured, or set, and may be repeated."""

    plain: frozenset[float] = frozenset()
    percent: frozenset[float] = frozenset()
    ratio: frozenset[float] = frozenset()
    pairs: frozenset[float] = frozenset()

    def __or__(self, other: Figures) -> Figures:
        return Figures(*(getattr(self, part.name) | getattr(other, part.name) for part in fields(self)))

    def hold(self, figure: Figure) -> bool:
        """Whether a figure is one of these, rounded."""
        known: frozenset[float] = getattr(self, figure.kind.value)
        return any(round(value, figure.digits) == figure.value for value in known)


NOTHING = Figures()


def without_claims(text: str, known: Figures) -> str:
    """Return the text without the sentences that hold a figure which is none of these, and with a word on that."""
    kept = measured_only(text, known)
    return kept if kept == " ".join(text.split()) else f"{kept} {REMOVED}".strip()


def measured_only(text: str, known: Figures) -> str:
    """Return the sentences that hold no other figures than these; empty if there are none."""
    sentences = _SENTENCE_END.split(" ".join(text.split()))
    return " ".join(sentence for sentence in sentences if all(map(known.hold, figures_in(sentence))))


# --- what was measured


def figures_of(*results: Verdict | Lesson) -> Figures:
    """Return the figures of verdicts: ratios and their inverses, the changes in percent, and pairs."""
    known = NOTHING
    for result in results:
        values = [result.ratio, result.low, result.high]
        if isinstance(result, Verdict):
            values += [*result.claim, *(guard.ratio for guard in result.guards)]
            known |= Figures(percent=frozenset(100 * guard.margin for guard in result.guards))
        ratios = {value for value in values if math.isfinite(value) and value > 0}
        ratios |= {1 / value for value in ratios}
        percent = frozenset(100 * abs(1 - ratio) for ratio in ratios)
        known |= Figures(frozenset(ratios), percent, frozenset(ratios), frozenset([float(result.pairs)]))
        if isinstance(result, Verdict) and ratios and result.outcome is not Outcome.FAILED:
            known |= _of_our_words(result.reason)
    return known


def figures_of_profile(profile: WorkloadProfile) -> Figures:
    """Return what observing a workload has shown; what its programs are called shows nothing."""
    rows = (*profile.commands, *profile.histories)
    known = Figures(frozenset({profile.wall_s, profile.cpu_s, float(profile.cpus), *map(float, _counts(profile))}))
    known |= Figures(percent=frozenset([100 * profile.busy_fraction, 100 * (1 - profile.predicted_ratio)]))
    known |= Figures(ratio=frozenset([profile.predicted_ratio]))
    for stats in rows:
        known |= Figures(plain=_of_command(stats))
    names = sorted({name for stats in rows for name in (stats.label, stats.comm) if name}, key=len, reverse=True)
    foreign = re.compile("|".join(map(re.escape, names)) or "$^")
    for sentence in profile.evidence:
        known |= _of_our_words(foreign.sub("it", sentence))
    return known


def figures_of_place(workload: WorkloadCommand, hardware: Hardware) -> Figures:
    """Return what is set: the machine, margins, and the numbers of the user's command."""
    typed = frozenset(figure.value for figure in figures_in(workload.command) if figure.kind is Kind.PLAIN)
    known = Figures(frozenset([float(hardware.cpus), float(hardware.memory_mib)]) | typed)
    return known | Figures(percent=frozenset(100 * guard.margin for guard in workload.guards))


def figures_of_policies(policies: Iterable[PolicyInfo]) -> Figures:
    """Return the values that tunables take, in their unit and in the next larger one."""
    values = {
        float(value)
        for info in policies
        for tunable in info.tunables
        for value in (tunable.minimum, tunable.default, tunable.maximum)
    }
    return set_values(values)


def set_values(values: Iterable[float]) -> Figures:
    """Return numbers that somebody set, such as tunables."""
    return Figures(frozenset(each for value in values for each in (value, value / 1000)))


def figures_of_report(report: VerificationReport) -> Figures:
    """Return what the oracles of the proving ground measured, with their bounds."""
    values = {value for oracle in report.oracles for value in (oracle.measured, oracle.bound)}
    return Figures(frozenset(values), ratio=frozenset(values))


def _of_our_words(sentence: str) -> Figures:
    known = NOTHING
    for figure in figures_in(sentence):
        known |= Figures(**{figure.kind.value: frozenset([figure.value])})
    return known


def _counts(profile: WorkloadProfile) -> Iterator[int]:
    yield profile.lost_events
    runnable = sorted(count for _second, count in profile.parallelism)
    yield from (runnable[len(runnable) // 2], runnable[-1]) if runnable else ()


def _of_command(stats: CommandStats) -> frozenset[float]:
    quantiles = (stats.cpu_ns_p50, stats.cpu_ns_p95, stats.cpu_ns_max, stats.burst_ns_mean, stats.run_delay_ns_max)
    milliseconds = {ns / 1e6 for ns in quantiles}
    seconds = {ns / 1e9 for ns in (*quantiles, stats.cpu_ns_total, stats.run_delay_ns_total)}
    return frozenset({float(stats.count), float(stats.voluntary_switches), *milliseconds, *seconds})


# --- figures in a text

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_TOKEN = re.compile(
    r"(?P<version>\d+(?:\.\d+){2,})|(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|"
    r"(?P<word>[^\W\d_]\w*(?:(?<=\d)(?:\.\d+)+)?)|[%‰٪×/\u2044]"
)
_TO_TWELVE = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SMALL = {word: float(value) for value, word in enumerate(_TO_TWELVE + _TEENS)}
_SMALL |= {word: 10.0 * value for value, word in enumerate(_TENS, 1)}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "dozen": 12.0}
_NTHS = ("half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_PARTS = {word: float(value) for value, word in enumerate(_NTHS, 2)} | {"hundredth": 100.0, "thousandth": 1000.0}
_MULTIPLES = {
    **dict.fromkeys(("twice", "double", "doubled", "doubles", "doubling"), 2.0),
    **dict.fromkeys(("thrice", "triple", "tripled", "triples", "tripling", "treble"), 3.0),
    **dict.fromkeys(("quadruple", "quadrupled", "quadruples"), 4.0),
    **dict.fromkeys(("halve", "halved", "halves", "halving"), 0.5),
}
_PERCENT = {"%", "‰", "٪", "percent", "pct", "percentage", "ppt", "cent", "prozent", "procent", "permille"}
_TIMES = {"times", "x", "×", "fold"}
_GLUED = {"x", "by", "to", "times", "about", "approx", "ca", "circa", "plus", "minus", "than", "of"}
_SLASHES = ("/", "\u2044")
_VAGUE = {"several", "many", "multi"}
_ROMAN = re.compile(r"(?=[MDCLXVI]{2})M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
_NAMES = ("x86",)
_GREEK = frozenset("μσΔλ")


def figures_in(sentence: str) -> list[Figure]:
    """Return the figures of a sentence; those that cannot be read have no value."""
    plain = "".join(_ascii_digit(letter) for letter in unicodedata.normalize("NFKD", sentence))
    strange = [Figure(Kind.PLAIN, math.nan)] if any(map(_is_strange, sentence)) else []
    return strange + list(_Reader(plain).figures())


def _ascii_digit(letter: str) -> str:
    """Return a digit of any script as 0 to 9, and nothing for what only changes how a letter looks."""
    category = unicodedata.category(letter)
    if category in ("Mn", "Me", "Cf"):
        return ""
    return str(unicodedata.decimal(letter)) if category == "Nd" else letter


def _is_strange(letter: str) -> bool:
    """Whether a letter is a number by itself (a fraction, a Roman or a Chinese one), or of a script we cannot read."""
    if letter.isascii() or letter in _GREEK or unicodedata.category(letter) == "Nd":
        return False
    if unicodedata.numeric(letter, None) is not None:
        return True
    base = unicodedata.normalize("NFKC", letter)
    return letter.isalpha() and not all("LATIN" in unicodedata.name(part, "") or part in _GREEK for part in base)


class _Reader:
    """Reads the figures of one sentence, token by token."""

    def __init__(self, sentence: str) -> None:
        self._tokens = list(_TOKEN.finditer(sentence))
        self._words = [match[0].lower() for match in self._tokens]
        self._next = 0

    def figures(self) -> Iterator[Figure]:
        while self._next < len(self._words):
            figure = self._figure()
            if figure is not None:
                yield figure

    def _figure(self) -> Figure | None:
        """Take the next token, or the tokens of one figure; None if there is no figure in it."""
        here = self._next
        value, digits = self._number()
        if value is None:
            self._next += 1
            return self._without_number(here)
        if self._peek() == "point":
            return self._unreadable()
        if part := self._part():
            return Figure(Kind.RATIO, round(value / part, 2), 2)
        if self._peek() in _SLASHES and self._peek(1).isdecimal():
            return self._unreadable()
        kind = self._kind()
        alone = self._words[here] == "one" and self._next == here + 1 and kind is Kind.PLAIN
        return None if alone else Figure(kind, value, digits)

    def _peek(self, ahead: int = 0) -> str:
        place = self._next + ahead
        return self._words[place] if place < len(self._words) else ""

    def _unreadable(self) -> Figure:
        self._next += 1
        return Figure(Kind.PLAIN, math.nan)

    def _number(self) -> tuple[float | None, int]:
        """Take a number in digits or in words, with the digits after its point; None if there is none."""
        match = self._tokens[self._next]
        if match["number"]:
            self._next += 1
            value, digits = float(match["number"]), len(match["number"].partition(".")[2])
            while (scale := self._peek()) in _SCALES:
                value, digits, self._next = value * _SCALES[scale], 0, self._next + 1
            return value, digits if math.isfinite(value) else 0
        total = value = 0.0
        taken = False
        while (word := self._peek()) in _SMALL or word in _SCALES or (taken and word == "and" and self._continues()):
            if word in _SMALL:
                value += _SMALL[word]
            elif word in _SCALES and _SCALES[word] >= 1000:
                total, value = total + (value or 1) * _SCALES[word], 0.0
            elif word in _SCALES:
                value = (value or 1) * _SCALES[word]
            taken = True
            self._next += 1
        return (total + value, 0) if taken else (None, 0)

    def _continues(self) -> bool:
        """Whether a number goes on after an "and": one hundred and five."""
        return self._words[self._next - 1] in _SCALES and self._peek(1) in _SMALL

    def _part(self) -> float:
        """Take what a number counts if that is parts: two thirds; 0 if it is something else."""
        word = self._peek()
        part = _PARTS.get(word) or _PARTS.get(word.removesuffix("s")) or (2.0 if word == "halves" else 0.0)
        self._next += bool(part)
        return part

    def _kind(self) -> Kind:
        """Take what follows a number and makes it a percentage, a multiple or a count of pairs."""
        word = self._peek()
        if word == "per" and self._peek(1) in ("cent", "mille"):
            self._next += 2
            return Kind.PERCENT
        kinds = {**dict.fromkeys(_PERCENT, Kind.PERCENT), **dict.fromkeys(_TIMES, Kind.RATIO)}
        kind = kinds.get(word) or (Kind.PAIRS if word in ("pair", "pairs") else Kind.PLAIN)
        self._next += kind is not Kind.PLAIN
        return kind

    def _without_number(self, place: int) -> Figure | None:
        """Return the figure that a word is by itself."""
        match, word = self._tokens[place], self._words[place]
        before = self._words[place - 1] if place else ""
        stem = word.removesuffix("fold")
        if word in _MULTIPLES:
            return Figure(Kind.RATIO, _MULTIPLES[word], 1)
        if word == "half":
            return Figure(Kind.RATIO, 0.5, 2)
        if word in _PARTS and before == "a":
            return Figure(Kind.RATIO, round(1 / _PARTS[word], 2), 2)
        if stem != word and stem in _SMALL | _SCALES:
            return Figure(Kind.RATIO, (_SMALL | _SCALES)[stem])
        unreadable = (
            (word in _PERCENT and word not in ("percentage", "cent"))
            or (word in ("fold", "times") and before in _VAGUE)
            or stem in _VAGUE - {word}
            or word in ("magnitude", "magnitudes")
            or (match[0].isupper() and _ROMAN.fullmatch(match[0]) is not None)
            or word.removesuffix("s") in _SCALES
            or (re.sub(r"[\d.]+$", "", word) in _GLUED - {word} and word not in _NAMES)
        )
        return Figure(Kind.PLAIN, math.nan) if unreadable else None
