"""The numbers of a report's page, and whether each is what the JSON of the report holds."""

from __future__ import annotations

from html.parser import HTMLParser


class Numbers(HTMLParser):
    """Collects (path, value, what is shown) of each `data` element."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str, str]] = []
        self._open: dict[str, str] | None = None

    def handle_starttag(self, tag, attrs):
        if tag == "data":
            self._open = dict(attrs)

    def handle_data(self, data):
        if self._open is not None:
            self.numbers.append((self._open["data-at"], self._open["value"], data))

    def handle_endtag(self, tag):
        if tag == "data":
            self._open = None


def numbers_of(page: str) -> list[tuple[str, str, str]]:
    """Return (path, value, what is shown) of each number of a page."""
    parser = Numbers()
    parser.feed(page)
    return parser.numbers


def at(values, path: str):
    """Return what a JSON pointer (RFC 6901, without its first slash) points to."""
    for step in path.split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        values = values[int(name)] if isinstance(values, list) else values[name]
    return values


def differing(numbers, report) -> list[str]:
    """Return the numbers that are not those of a report, given as JSON values."""
    return [
        f"{path}: the page has {value} ({shown}), the repository {at(report, path)}"
        for path, value, shown in numbers
        if float(value) != at(report, path) or not _rounded(float(value), shown)
    ]


def _rounded(value: float, shown: str) -> bool:
    """Whether what is shown is the value, in one of the units that are shown, rounded to its last digit."""
    number, _space, unit = shown.partition(" ")
    factor = {"": 1, "s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "%": 0.01}[unit]
    mantissa, _e, exponent = number.replace(",", "").partition("e")
    last = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])) * factor
    return abs(float(number.replace(",", "")) * factor - value) <= 0.501 * last
