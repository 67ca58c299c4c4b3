"""What programs of others have to say of our shell scripts, container files and manual pages (`make check`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.setup import manuals
from deploy.setup.installation import Place, entries
from deploy.setup.package import maintainer_scripts
from tests.support.paths import ROOT

SHEBANGS = (b"#!/bin/sh\n", b"#!/bin/bash\n")
PAGES = manuals.pages()


def complaints(*words: object, stdin: str = "") -> str:
    """Return what a linter prints about a text, or about the files that it is given."""
    done = subprocess.run(list(map(str, words)), input=stdin, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr if done.returncode or done.stderr else ""


def shell_scripts() -> list[str]:
    """Return the tracked files that a shell runs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    return [name for name in files if (ROOT / name).read_bytes().startswith(SHEBANGS)]


@pytest.mark.parametrize("name", shell_scripts())
def test_shell_scripts(name: str) -> None:
    assert complaints("shellcheck", ROOT / name) == ""


def test_maintainer_scripts_with_their_names_filled_in() -> None:
    scripts = dict(maintainer_scripts(entries(Place(Path("/usr")))))
    assert {name: complaints("shellcheck", "-", stdin=text) for name, text in scripts.items()} == dict.fromkeys(
        scripts, ""
    )


@pytest.mark.parametrize("path", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda path: path.name)
def test_container_files(path: Path) -> None:
    assert complaints(Path(sys.executable).with_name("hadolint"), path) == ""


@pytest.mark.parametrize("name", PAGES)
def test_manual_pages(name: str) -> None:
    assert complaints("mandoc", "-Tlint", stdin=PAGES[name]) == ""
    assert complaints("groff", "-ww", "-man", "-Tutf8", stdin=PAGES[name]) == ""


def test_manual_pages_show_their_hyphens() -> None:
    words = ["groff", "-man", "-Tutf8"]
    shown = subprocess.run(words, input="".join(PAGES.values()), capture_output=True, text=True, check=True).stdout
    assert "SCHEDAGENT-VERIFY" in shown.upper()
    assert "SCHEDAGENT\\-VERIFY" not in shown


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["shellcheck", "-"], "#!/bin/sh\nrm -rf $1/\n"),
        ([Path(sys.executable).with_name("hadolint"), "-"], "FROM debian\nRUN cd /tmp\n"),
        (["mandoc", "-Tlint"], ".TH A 1 2026-01-01\n.SH NAME\n.nosuch\n"),
        (["groff", "-ww", "-man", "-Tutf8"], ".nosuch\n"),
    ],
    ids=["shellcheck", "hadolint", "mandoc", "groff"],
)
def test_a_linter_that_is_content_with_everything_would_be_seen(words: list[object], text: str) -> None:
    assert complaints(*words, stdin=text) != ""
