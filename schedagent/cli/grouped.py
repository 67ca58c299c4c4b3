"""The look of `--help`: commands under headings, choices and ranges in words, and no Python types."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

OPTIMISE, POLICIES, MACHINE, SERVICE = "Optimise", "Policies", "This machine", "Service"
"""Headings, in their order."""

LONGEST_HELP = 60
"""Characters of a command's first help line, so that it fits 80 columns."""

HELP_OPTIONS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
"""Settings of the outermost command, which those below it inherit."""

_ARGUMENT, _OPTION = "argument", "option"
_IN_WORDS = (
    (re.compile(r"<([^<>]*\|[^<>]*)>"), r"[\1]"),  # choices
    (re.compile(r" <[^<>]*>$"), ""),  # the type of an argument
    (re.compile(r"([\d.]+)<=x<=([\d.]+)"), r"\1 to \2"),
    (re.compile(r"x>=(-?[\d.]+)"), r"\1 or more"),
    (re.compile(r"(\d)\.0(?=[;\] ])"), r"\1"),
)
_REFUSALS = (
    (re.compile(r"^Value error, "), ""),
    (re.compile(r"^Input should be greater than or equal to (\S+)$"), r"must be \1 or more"),
    (re.compile(r"^Input should be less than or equal to (\S+)$"), r"must be \1 or less"),
    (re.compile(r"^Input should be a valid integer\b.*"), "must be a whole number"),
    (re.compile(r"^Input should be a valid number\b.*"), "must be a number"),
)
"""What typer says of a value that it does not accept, in pydantic's words for programmers."""


class Verb(TyperCommand):
    """A command whose help names its arguments as people write them."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return usage(super().collect_usage_pieces(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self, ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = _in_words(error.message, _REFUSALS)
            raise


class Verbs(TyperGroup):
    """A group of commands."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return usage(super().collect_usage_pieces(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self, ctx, formatter)
        self.format_commands(ctx, formatter)


class GroupedCommands(Verbs):
    """Lists commands under their `rich_help_panel`, which typer itself heeds only if rich renders the help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels = defaultdict(list)
        width = max(map(len, self.commands))
        for name in self.list_commands(ctx):
            command: Any = self.commands[name]
            panels[command.rich_help_panel].append((name.ljust(width), command.get_short_help_str(LONGEST_HELP)))
        for panel in (OPTIMISE, POLICIES, MACHINE, SERVICE):
            with formatter.section(panel):
                formatter.write_dl(panels[panel])


def parameters(command: Any, ctx: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield "Arguments" and "Options", each with the name and the help of those that the command has."""
    for kind, title in ((_ARGUMENT, "Arguments"), (_OPTION, "Options")):
        records = [
            (_in_words(name), _in_words(text))
            for parameter in command.get_params(ctx)
            if parameter.param_type_name == kind and (record := parameter.get_help_record(ctx))
            for name, text in (record,)
        ]
        if records:
            yield title, records


def usage(pieces: list[str]) -> list[str]:
    """Return the words of a usage line: what has to be given stands without braces."""
    return [piece.replace("{", "").replace("}", "") for piece in pieces]


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    for title, records in parameters(command, ctx):
        with formatter.section(title):
            formatter.write_dl(records)


def _in_words(text: str, table: Sequence[tuple[re.Pattern[str], str]] = _IN_WORDS) -> str:
    for pattern, words in table:
        text = pattern.sub(words, text)
    return text
