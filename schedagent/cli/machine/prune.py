"""`schedagent prune`: remove what is old and needed by nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from schedagent.cli.common import Json, guarded, print_json, say_lines, settings
from schedagent.core.retention.limits import PRUNE_DAYS


def prune(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Leave alone what is younger: 12h, 30d, 2w.")
    ] = f"{PRUNE_DAYS}d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and change nothing.")] = False,
    limits: Annotated[bool, typer.Option("--limits", help="Show the limit of everything that grows.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what is old and needed by nothing.

    Runs with their transcripts, policies that nothing came of, and what the cache folder can make again. What is
    deployed, proves a policy, is not finished, waits for an approval, or teaches planning stays.

    Example: schedagent prune --older-than 2w --dry-run
    """

    def command() -> int:
        from schedagent.retention import text
        from schedagent.retention.plan import make_plan, read_age
        from schedagent.retention.prune import carry_out
        from schedagent.run.progress import reporter

        if limits:
            say_lines(text.limits_text())
            return 0
        plan = make_plan(settings(), read_age(older_than))
        pruned = None if dry_run else carry_out(settings(), plan, reporter())
        if as_json:
            print_json(text.plan_json(plan, pruned))
        else:
            say_lines(text.plan_text(plan, pruned))
        return 0

    guarded(command)
