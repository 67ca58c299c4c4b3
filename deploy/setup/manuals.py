# SPDX-License-Identifier: GPL-2.0-only
"""Manual pages, in the man(7) macros, made of the commands themselves and of the documented default configurations.

One page for each command of `schedagent`, a group of commands on one page, one for each topic of `schedagent help`, and
one for each configuration file. The pages of deploy/man are written by hand. click-man knows click's commands only, and
typer has its own.

python -m deploy.setup.manuals PAGE  prints one page (make man PAGE=schedagent-verify.1 shows it)
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from deploy.setup.environment import ROOT
from schedagent import __version__
from schedagent.cli import app as cli
from schedagent.cli.grouped import parameters
from schedagent.cli.guide.statuses import statuses_of
from schedagent.cli.guide.topics import Topic, load_topics
from schedagent.core.errors import UsageError
from schedagent.core.process.making import exit_status
from schedagent.core.settings import OPTIONS

PROGRAM = "schedagent"
BY_HAND = ROOT / "deploy" / "man"
CONFIGURATIONS = ROOT / "deploy" / "systemd"
_FILES = {
    "~/.config/schedagent/config.toml": "Settings, as TOML; see CONFIGURATION FILE.",
    "~/.local/state/schedagent": "What was measured, the policies that runs made, and the keys.",
    "~/.cache/schedagent": "Kernels, snapshots of virtual machines, compiled policies; safe to delete.",
    "/run/schedagent/schedagentd.sock": "Where schedagentd(8) listens.",
    "/run/schedagent/observer.sock": "Where schedagent-observer(8) listens.",
}


def pages() -> dict[str, str]:
    """Return the text of every page by its file name, such as schedagent-verify.1."""
    root: Any = typer.main.get_command(cli.app)
    context = root.context_class(root, info_name=PROGRAM, **root.context_settings)
    texts = {f"{PROGRAM}.1": _page(PROGRAM, root, context, [*_commands_of(root), *_surroundings()])}
    for name, command in root.commands.items():
        below = command.context_class(command, info_name=name, parent=context)
        texts[f"{PROGRAM}-{name}.1"] = _page(f"{PROGRAM}-{name}", command, below, list(_below(command, below)))
    for topic in load_topics().values():
        texts[f"{PROGRAM}-{topic.name}.7"] = topic_page(topic)
    for path in sorted(CONFIGURATIONS.glob("*.toml")):
        texts[f"{path.name}.5"] = configuration_page(path.name, path.read_text())
    for path in sorted(BY_HAND.iterdir()):
        text = path.read_text().replace("@DATE@", changed().date().isoformat())
        texts[path.name] = text.replace("@VERSION@", __version__)
    return texts


def topic_page(topic: Topic) -> str:
    """Return the page of a topic: Markdown of paragraphs, indented examples, and lists."""
    lines = [
        _heading(f"{PROGRAM}-{topic.name}", 7, "Miscellaneous Information"),
        ".SH NAME",
        f"{escaped(f'{PROGRAM}-{topic.name}')} \\-",
        _filled(topic.title),
        ".SH DESCRIPTION",
        *_blocks(topic.body),
        *_see_also(f"{PROGRAM}-{topic.name}"),
    ]
    return _tidy("\n".join(lines) + "\n")


def _see_also(title: str) -> Iterator[str]:
    """The program and the daemon; on the program's own page, every topic."""
    topics = [f"{PROGRAM}-{name} (7)" for name in load_topics()] if title == PROGRAM else [f"{PROGRAM} (1)"]
    yield ".SH SEE ALSO"
    yield ",\n".join(f".BR {escaped(page)}" for page in (*topics, "schedagentd (8)"))


def _tidy(page: str) -> str:
    """Drop the requests for a new paragraph where one begins anyway."""
    return re.sub(r"\.PP\n(?=\.PP\n)", "", re.sub(r"(?m)^(\.S[HS] .*\n)\.PP\n", r"\1", page))


def _blocks(body: str) -> Iterator[str]:
    for block in re.split(r"\n\n(?! )|\n\n(?= {4})", body):
        if block.startswith("    "):
            yield from _example(textwrap.dedent(block))
        elif block.startswith("- "):
            for item in re.split(r"\n(?=- )", block):
                yield f'.IP "\\(bu" 2\n{_filled(_plain(item.removeprefix("- ")))}'
            yield ".PP"
        else:
            yield f".PP\n{_filled(_plain(block))}"


def _example(text: str) -> list[str]:
    return [".PP", ".RS 4", ".nf", escaped(text), ".fi", ".RE"]


def _plain(text: str) -> str:
    return text.replace("`", "")


def configuration_page(name: str, text: str) -> str:
    """Return the page of a configuration file whose comments describe the keys below them.

    Args:
        name: of the file in /etc/schedagent.
        text: its default content, paragraphs of comments and of keys, which may be commented out.
    """
    program = name.removesuffix(".toml")
    lines = [
        _heading(name, 5, "File Formats"),
        ".SH NAME",
        f"{escaped(name)} \\- configuration of {escaped(program)}",
        ".SH SYNOPSIS",
        f".I {escaped(f'/etc/schedagent/{name}')}",
        ".SH DESCRIPTION",
        "A TOML file; what is not in it has its default, which is shown here.",
    ]
    for paragraph in text.split("\n\n"):
        comments = [line.lstrip("# ") for line in paragraph.splitlines() if line.startswith("# ")]
        keys = [line.lstrip("#") for line in paragraph.splitlines() if re.match(r"#?[\w\[]", line)]
        if "SPDX-License-Identifier" in paragraph or not keys:
            continue
        words = re.sub(":$", ".", " ".join(comments))
        lines += [".TP", *"\n.TQ\n".join(f".B {escaped(key)}" for key in keys).splitlines(), _filled(_capital(words))]
    return "\n".join([*lines, ".SH SEE ALSO", f".BR {PROGRAM} (1),", ".BR schedagentd (8)"]) + "\n"


def escaped(text: str) -> str:
    """Return text that roff prints as it is: nothing in it is a request, and a minus can be copied."""
    return _protected(_literal(text).splitlines())


def _literal(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")


def _protected(lines: Sequence[str]) -> str:
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in lines)


def _filled(text: str) -> str:
    """Return words in source lines of at most 78 characters, none of which is a request to roff."""
    return _protected(textwrap.wrap(_literal(text), 76, break_long_words=False, break_on_hyphens=False))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _heading(title: str, section: int, manual: str) -> str:
    return f'.TH {escaped(title.upper())} {section} {changed().date().isoformat()} "{PROGRAM} {__version__}" "{manual}"'


def _page(title: str, command: Any, context: Any, rest: list[str]) -> str:
    words = inspect.cleandoc(command.help or "")
    lines = [
        _heading(title, 1, "User Commands"),
        ".SH NAME",
        f"{escaped(title)} \\-",
        _filled(_short(words)),
        ".SH SYNOPSIS",
        *_synopsis(command, context),
        ".SH DESCRIPTION",
        *_paragraphs(words),
        *_parameters(command, context, ".SH"),
        *rest,
        *_ending(command, context.command_path.removeprefix(PROGRAM).strip(), words, ".SH"),
        *_see_also(title),
    ]
    return _tidy("\n".join(lines) + "\n")


def _ending(command: Any, name: str, words: str, heading: str) -> Iterator[str]:
    """What a command's page ends with: its exit statuses and its example. A group has none of its own."""
    if getattr(command, "commands", None) and name:
        return
    yield f"{heading} EXIT STATUS" if heading == ".SH" else ".PP\nExit status:"
    for status, meaning in statuses_of(name).items():
        yield f".TP\n.B {status}\n{_filled(_capital(meaning))}."
    if example := words.partition(_EXAMPLE)[2]:
        yield f"{heading} EXAMPLES" if heading == ".SH" else ".PP\nExample:"
        yield from _example(example)


_EXAMPLE = "\n\nExample: "
"""What the last paragraph of a command's help begins with."""


def _short(words: str) -> str:
    return words.partition("\n\n")[0].rstrip(".")


def _paragraphs(words: str) -> list[str]:
    return "\n.PP\n".join(map(_filled, words.partition(_EXAMPLE)[0].split("\n\n"))).splitlines()


def _synopsis(command: Any, context: Any) -> list[str]:
    pieces = " ".join(command.collect_usage_pieces(context))
    return [f".B {escaped(context.command_path)}", escaped(pieces)]


def _parameters(command: Any, context: Any, heading: str = "") -> Iterator[str]:
    """Arguments and options, each with the words of --help."""
    for title, records in parameters(command, context):
        if heading:
            yield f"{heading} {title.upper()}"
        for name, words in records:
            yield f".TP\n.B {escaped(name)}\n{_filled(words)}"


def _commands_of(group: Any) -> list[str]:
    rows = sorted((name, _short(inspect.cleandoc(command.help or ""))) for name, command in group.commands.items())
    return [".SH COMMANDS", *(f".TP\n.BR {escaped(f'{PROGRAM}-{name}')} (1)\n{_filled(words)}" for name, words in rows)]


def _below(command: Any, context: Any) -> Iterator[str]:
    """The commands of a group, each with its arguments and options."""
    children = getattr(command, "commands", {})
    if children:
        yield ".SH COMMANDS"
    for name, child in children.items():
        below = child.context_class(child, info_name=name, parent=context)
        yield f".SS {escaped(name)}"
        yield from _synopsis(child, below)
        yield ".PP"
        yield from _paragraphs(inspect.cleandoc(child.help or ""))
        yield from _parameters(child, below)
        yield from _ending(child, f"{context.info_name} {name}", inspect.cleandoc(child.help or ""), "")


def _surroundings() -> Iterator[str]:
    yield ".SH ENVIRONMENT"
    for key, option in OPTIONS.items():
        if option.variable:
            words = f"{_capital(option.meaning)} Key of the file: {key}."
            yield f".TP\n.B {escaped(option.variable)}\n{_filled(words)}"
    yield ".SH CONFIGURATION FILE"
    yield "It has the keys named above, and these tables:"
    for key, option in OPTIONS.items():
        if not option.variable:
            yield f".TP\n.B [{escaped(key)}]\n{_filled(_capital(option.meaning))}"
    yield ".SH FILES"
    for path, words in _FILES.items():
        yield f".TP\n.I {escaped(path)}\n{_filled(words)}"


def changed() -> datetime.datetime:
    """When the commands were last changed, or SOURCE_DATE_EPOCH (reproducible builds)."""
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or Path(cli.__file__).stat().st_mtime)
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def main(words: Sequence[str] | None = None) -> int:
    """Print one page; return the exit status."""
    parser = argparse.ArgumentParser(prog="manuals", description=main.__doc__)
    parser.add_argument("page", nargs="?", default=f"{PROGRAM}.1", help="such as schedagent-verify.1")
    page = parser.parse_args(words).page

    def step() -> None:
        texts = pages()
        if page not in texts:
            raise UsageError(f"there is no page {page}", f"pages: {', '.join(sorted(texts))}")
        sys.stdout.write(texts[page])

    return exit_status(step)


if __name__ == "__main__":
    sys.exit(main())
