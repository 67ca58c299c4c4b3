"""`schedagent help`: topics that no single command's help covers, and the help of any command."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from schedagent.cli.common import EXIT_USAGE, complain, guarded
from schedagent.cli.guide.completion import topics
from schedagent.core.errors import UsageError


def show_help(
    context: typer.Context,
    topic: Annotated[
        list[str] | None,
        typer.Argument(metavar="TOPIC", help="A topic or a command; all topics if left out.", autocompletion=topics),
    ] = None,
) -> None:
    """Explain a topic or a command.

    Example: schedagent help verdict
    """

    def command() -> int:
        from schedagent.cli.guide.topics import load_topics

        known = load_topics()
        words = topic or []
        if not words:
            width = max(map(len, known))
            typer.echo("\n".join(f"  {name:<{width}}  {entry.title}" for name, entry in known.items()))
        elif len(words) == 1 and words[0] in known:
            typer.echo(known[words[0]].text)
        elif described := _help_of(context, words):
            typer.echo(described)
        else:
            hint = f"topics: {', '.join(known)}; or the name of a command"
            return complain(UsageError(f"there is no topic {' '.join(words)!r}", hint), EXIT_USAGE)
        return 0

    guarded(command)


def _help_of(context: typer.Context, words: list[str]) -> str:
    """Return the help of a command; empty if there is none of these words."""
    below: Any = context.find_root()
    for word in words:
        command = getattr(below.command, "commands", {}).get(word)
        if command is None:
            return ""
        below = command.context_class(command, info_name=word, parent=below)
    return str(below.get_help())
