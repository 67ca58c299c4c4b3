"""The list of commands in `schedagent --help`: under headings, each command's first help line whole."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from typer.core import TyperGroup

OPTIMISE, POLICIES, MACHINE, SERVICE = "Optimise", "Policies", "This machine", "Service"
"""Headings, in their order."""

LONGEST_HELP = 60
"""Characters of a command's first help line, so that it fits 80 columns."""


class GroupedCommands(TyperGroup):
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
