"""Reports and samples as files, in every form that a program or a person asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from repo_store.store import PolicyRepository
from schedagent.core.errors import UsageError
from schedagent.report.faces.markdown import samples_markdown, to_markdown
from schedagent.report.faces.samples import samples_csv
from schedagent.report.report import Report

STDOUT = Path("-")

OPTIONS = {"html": "--html", "markdown": "--markdown", "csv": "--csv", "samples": "--samples"}
"""The forms, and the options of `runs report` that ask for them."""


def write_report(
    repository: PolicyRepository, report: Report, files: Mapping[str, Path], options: Mapping[str, str] = OPTIONS
) -> None:
    """Write a report in several forms.

    Args:
        repository: where the texts of its policies are.
        files: by form, where to; "-" is stdout, which takes one form, and no page.
        options: what asks for a form on the command line, for messages.

    Raises:
        UsageError: a file cannot be written; those before it are.
    """
    if "html" in files and files["html"] == STDOUT:
        raise UsageError(f"{options['html']} - cannot be written", "a page goes into a file")
    if list(files.values()).count(STDOUT) > 1:
        wanted = " and ".join(options[form] for form, path in files.items() if path == STDOUT)
        raise UsageError(f"{wanted} both go to stdout", "name a file for one of them")
    forms: dict[str, Callable[[], str]] = {
        "html": lambda: _page(repository, report),
        "markdown": lambda: to_markdown(report),
        "csv": lambda: samples_csv(report),
        "samples": lambda: samples_markdown(report),
    }
    for form, path in files.items():
        _write(forms[form](), path, options[form])


def _page(repository: PolicyRepository, report: Report) -> str:
    from schedagent.report.page.document import to_html
    from schedagent.report.page.sources import policy_texts

    return to_html(report, policy_texts(repository, report))


def _write(content: str, path: Path, option: str) -> None:
    if path == STDOUT:
        sys.stdout.write(content)
        return
    try:
        path.write_text(content, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from None
