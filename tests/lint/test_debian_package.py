"""lintian on the Debian package with two of its libraries: `make check-deb` checks it with all, which takes minutes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.setup import environment
from deploy.setup.package import build, lint
from schedagent.core.errors import SetupError


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One library in Python, one that is compiled."""
    project = {**environment._project(), "dependencies": ["annotated-doc", "zstandard"]}
    monkeypatch.setattr(environment, "_project", lambda: project)


@pytest.mark.usefixtures("few")
def test_lintian_finds_no_error(tmp_path: Path) -> None:
    lint(build(tmp_path, bytecode=False, compressed=False))


@pytest.mark.usefixtures("few")
def test_what_is_not_excused_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the overrides, our compiled libraries have errors."""
    from deploy.setup import package

    shutil.copytree(package.SCRIPTS, tmp_path / "debian")
    (tmp_path / "debian/lintian-overrides").write_text("")
    monkeypatch.setattr(package, "SCRIPTS", tmp_path / "debian")
    with pytest.raises(SetupError, match="E: schedagent: bogus-mail-host"):
        lint(build(tmp_path / "dist", bytecode=False, compressed=False))
