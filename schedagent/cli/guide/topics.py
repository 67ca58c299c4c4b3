"""The topics of `schedagent help`: Markdown files of this folder's `texts`, of which the manual pages are made, too."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TEXTS = Path(__file__).with_name("texts")


@dataclass(frozen=True)
class Topic:
    """One topic.

    Args:
        name: as `schedagent help` takes it.
        title: what it is about, in a few words: the file's heading.
        text: the whole file.
    """

    name: str
    title: str
    text: str

    @property
    def body(self) -> str:
        """The text below the heading."""
        return self.text.partition("\n")[2].strip("\n")


@functools.cache
def load_topics() -> Mapping[str, Topic]:
    """Return all topics by name."""
    return {path.stem: _read(path) for path in sorted(TEXTS.glob("*.md"))}


def topic_names() -> list[str]:
    """Return their names."""
    return [path.stem for path in sorted(TEXTS.glob("*.md"))]


def _read(path: Path) -> Topic:
    text = path.read_text(encoding="utf-8").strip()
    return Topic(path.stem, text.partition("\n")[0].removeprefix("# "), text)
