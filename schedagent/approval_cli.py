"""`schedagent approve` and `reject`, and the same question at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from schedagent.approval_text import commands, show_waiting
from schedagent.core.approval import Decision

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]
Run = Annotated[str, typer.Argument(help="Id of a run that waits (see: schedagent runs list).")]
Digest = Annotated[
    str, typer.Option("--digest", help="Only if what waits has this digest, or one that begins so (8 digits or more).")
]
Report = Mapping[str, Any]

_SHORTEST_DIGEST = 8


def approve(
    run: Run,
    digest: Digest = "",
    because: Annotated[str, typer.Option(help="A reason to keep with it.")] = "",
    as_json: Json = False,
) -> None:
    """Approve what a run waits for (see: schedagent runs show RUN), and go on with it."""
    _decide_and_go_on(run, digest, as_json, True, because)


def reject(
    run: Run,
    because: Annotated[str, typer.Option(help="Why: the next plan is made with it, and the report says it.")],
    digest: Digest = "",
    as_json: Json = False,
) -> None:
    """Reject what a run waits for, and go on: to another plan, or to the end without a token."""
    _decide_and_go_on(run, digest, as_json, False, because)


def _decide_and_go_on(run: str, digest: str, as_json: bool, approved: bool, because: str) -> None:
    from schedagent.cli import guarded, settings

    def command() -> int:
        from schedagent.approval import decided_now
        from schedagent.progress import reporter
        from schedagent.wiring import decide_run

        decision = decided_now(approved, because)
        wanted = _checked_digest(digest)
        return follow(lambda: decide_run(settings(), run, decision, wanted, reporter()), as_json)

    guarded(command)


def _checked_digest(digest: str) -> str:
    from schedagent.core.errors import UsageError

    if digest and (len(digest) < _SHORTEST_DIGEST or set(digest) - set("0123456789abcdef")):
        raise UsageError(f"--digest {digest!r} is not a digest", "see what waits: schedagent runs show RUN")
    return digest


def follow(step: Callable[[], Report], as_json: bool) -> int:
    """Take a run as far as it goes, ask at the terminal when it waits, and show the end; return the exit status."""
    from schedagent.cli import EXIT_WAITING, settings, show_report
    from schedagent.progress import reporter
    from schedagent.wiring import decide_run

    report = step()
    while report["waiting"] and not as_json and sys.stdin.isatty() and sys.stderr.isatty():
        show_waiting(report["waiting"])
        decision = _ask(report["run"])
        if decision is None:
            break
        report = decide_run(settings(), report["run"], decision, report["waiting"]["digest"], reporter())
    else:
        if report["waiting"] and not as_json:
            show_waiting(report["waiting"])
    if report["waiting"]:
        if as_json:
            show_report(report, as_json)
        typer.echo(commands(report["run"], report["waiting"]["digest"]), err=True)
        return EXIT_WAITING
    return show_report(report, as_json)


def _ask(run: str) -> Decision | None:
    """Ask at the terminal; None for later."""
    from schedagent.approval import decided_now
    from schedagent.core.errors import UsageError

    try:
        while True:
            answer = _read("Approve? y(es), n(o), or l(ater): ").lower()
            if answer in ("y", "yes"):
                return decided_now(True)
            if answer in ("n", "no"):
                try:
                    return decided_now(False, _read("Because: "))
                except UsageError as error:
                    typer.echo(f"{error.message}: {error.hint}", err=True)
            if answer in ("", "l", "later"):
                return None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(commands(run, "")) from None


def _read(prompt: str) -> str:
    """Read a line; the end of the input counts as an empty one."""
    typer.echo(prompt, err=True, nl=False)
    return sys.stdin.readline().strip()
