"""Draws the README's picture: the report of a real run, as a terminal of 80 columns shows it (`make picture`).

python -m deploy.picture FILE.svg
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from schedagent import __version__

ROOT = Path(__file__).resolve().parents[1]
BATCH = ROOT / "tests" / "fixtures" / "longtail"
WORDS = ("optimize", "./batch.sh 9 200 1500", "--iterations", "1", "--candidates", "1")
"""A batch of nine short tasks and a long one. What it gains is the order of its work, not cheaper switching."""
COLUMNS = 80

_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px monospace; line-height: {line_height}px; }}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own frame without its web font: a picture of ours loads nothing from elsewhere."""


def report_of_run(state: Path) -> str:
    """Run the program for real; return what it printed, colours included."""
    shown = {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, "SCHEDAGENT_STATE": str(state), **shown}
    command = [sys.executable, "-m", "schedagent", *WORDS, "--quiet"]
    subprocess.run(["make", "-s", "-C", str(BATCH)], check=True)
    return subprocess.run(command, cwd=BATCH, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def picture(report: str, title: str) -> str:
    """Return the terminal as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ schedagent {WORDS[0]} '{WORDS[1]}' {' '.join(WORDS[2:])}", style="bold"))
    console.print(Text.from_ansi(report.rstrip()))
    return console.export_svg(title=title, theme=SVG_EXPORT_THEME, code_format=_SVG, unique_id="run")


def main(words: list[str]) -> int:
    """Write the picture to the file named."""
    with tempfile.TemporaryDirectory(prefix="schedagent-picture-") as state:
        report = report_of_run(Path(state))
    report = report.replace(str(BATCH), "~/batch")
    title = f"schedagent {__version__}, a real run of {date.today().isoformat()}"
    Path(words[0]).write_text(picture(report, title))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
