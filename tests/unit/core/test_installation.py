"""Hints name a command that works for the copy of schedagent that gives them, however it was installed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.setup.environment import MINOR
from deploy.setup.installation import Place
from schedagent.core.errors import SetupError
from schedagent.core.installation import (
    MANIFEST,
    PACKAGE_OF,
    Installation,
    InstalledBy,
    installation_of,
    this_installation,
)
from schedagent.core.process import proc
from schedagent.setup.packages import REQUIRED
from tests.support.paths import ROOT

PYTHON = Path("/opt/python")


def site_packages(venv: Path) -> Path:
    folder = venv / f"lib/python{MINOR}/site-packages"
    folder.mkdir(parents=True)
    return folder


def checkout(folder: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        (folder / name).write_text("")
    return folder


def test_a_checkout_is_set_up_by_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = installation_of(checkout(tmp_path), PYTHON)
    monkeypatch.chdir(tmp_path)
    assert here.by is InstalledBy.CHECKOUT
    assert here.how_to_set_up() == here.how_to_restore_libraries() == "run: make setup"
    assert here.how_to_get_kernel() == "run: make kernel"
    assert here.how_to_get_kernel("6.18.15+deb13-amd64") == "run: make kernel KERNEL=6.18.15+deb13-amd64"


def test_make_is_given_the_checkout_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my sources"
    folder.mkdir()
    here = installation_of(checkout(folder), PYTHON)
    monkeypatch.chdir(tmp_path)
    assert here.how_to_set_up() == f"run: make -C '{folder}' setup"


def test_a_working_directory_that_was_removed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = installation_of(checkout(tmp_path), PYTHON)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert here.how_to_get_kernel() == f"run: make -C {tmp_path} kernel"


def test_sources_without_a_makefile_have_no_make(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    here = installation_of(tmp_path, PYTHON)
    assert here.by is InstalledBy.PIP
    assert here.how_to_set_up() == "run: /opt/python -m schedagent setup"
    assert here.how_to_get_kernel() == "run: /opt/python -m schedagent kernels fetch"
    assert here.how_to_get_kernel("6.18") == "run: /opt/python -m schedagent kernels fetch 6.18"
    assert here.how_to_use_kernel() == "run: /opt/python -m schedagent kernels use PATH"


def test_a_program_beside_the_interpreter_is_named_as_the_user_can_call_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip, pipx and uv put it there; a link on PATH, as the latter two make, is the same program."""
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    script = programs / "schedagent"
    script.touch(mode=0o755)
    here = installation_of(site_packages(tmp_path / "venv"), programs / "python")
    other = tmp_path / "other"
    other.mkdir()
    (other / "schedagent").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(other))
    assert here.how_to_set_up() == f"run: {script} setup", "what PATH leads to is another copy"
    (other / "schedagent").unlink()
    (other / "schedagent").symlink_to(script)
    assert here.how_to_set_up() == "run: schedagent setup"
    assert here.how_to_get_kernel("6.18") == "run: schedagent kernels fetch 6.18"
    assert here.command("setup", "--yes") == "schedagent setup --yes"


def test_pip_installs_into_a_virtual_environment_of_any_name(tmp_path: Path) -> None:
    assert installation_of(site_packages(tmp_path / "schedagent/venv"), PYTHON).by is InstalledBy.PIP
    assert installation_of(Path("/site-packages"), PYTHON).by is InstalledBy.PIP


def test_a_debian_package_is_set_up_by_its_program(tmp_path: Path) -> None:
    place = Place(Path("/usr"), tmp_path)
    here = installation_of(site_packages(place.here(place.venv)), PYTHON)
    assert here.by is InstalledBy.DEBIAN
    assert here.how_to_set_up() == "run: /opt/python -Im schedagent setup"
    assert here.how_to_get_kernel("6.18") == "run: /opt/python -Im schedagent kernels fetch 6.18"
    assert "--reinstall" in here.how_to_restore_libraries()


@pytest.mark.parametrize("by", [InstalledBy.PIP, InstalledBy.DEBIAN])
def test_whoever_has_no_makefile_is_not_told_of_make(tmp_path: Path, by: InstalledBy) -> None:
    copy = Installation(tmp_path, by, PYTHON)
    hints = [
        getattr(copy, name)() for name in dir(copy) if name.startswith("how_to_") and name != "how_to_install_program"
    ]
    assert len(hints) == 4
    assert [hint for hint in [*hints, copy.how_to_install_program("bwrap")] if re.search(r"\bmake\b", hint)] == []


def test_make_install_leaves_a_manifest(tmp_path: Path) -> None:
    place = Place(Path("/usr/local"), tmp_path)
    root = site_packages(place.here(place.venv))
    assert place.manifest.name == MANIFEST
    place.here(place.manifest).write_text("")
    here = installation_of(root, PYTHON)
    assert here.by is InstalledBy.MAKE_INSTALL
    assert here.how_to_set_up() == "run: /opt/python -Im schedagent setup"
    assert "make install" in here.how_to_restore_libraries()


def test_this_copy_is_a_checkout() -> None:
    assert (this_installation().root, this_installation().by) == (ROOT, InstalledBy.CHECKOUT)


@pytest.mark.parametrize("hint", ["how_to_set_up", "how_to_get_kernel", "how_to_use_kernel"])
def test_the_commands_that_hints_name_exist(tmp_path: Path, hint: str) -> None:
    copy = installation_of(tmp_path, Path(sys.executable).with_name("python"))
    assert copy.by is InstalledBy.PIP
    words = shlex.split(getattr(replace(copy, python=tmp_path / "python"), hint)().removeprefix("run: "))
    called = [sys.executable, *(word for word in words[1:] if word != "PATH"), "--help"]
    done = subprocess.run(called, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Usage: {' '.join(words[2:]).removesuffix(' PATH')}")


def test_every_package_of_a_program_is_required() -> None:
    assert set(PACKAGE_OF.values()) <= {entry.package for entry in REQUIRED if not entry.only_for_checkout}


def test_an_unknown_program_is_not_said_to_come_from_set_up() -> None:
    with pytest.raises(SetupError) as caught:
        proc.run(["a-program-that-is-nowhere"], timeout_s=5)
    assert caught.value.hint == "install it, or check its name and PATH"
    with pytest.raises(SetupError) as caught:
        proc.start(["/nowhere/bpftool"])
    assert caught.value.hint == this_installation().how_to_set_up()


def test_no_hint_names_make_but_this_one() -> None:
    """Whoever installed a package has no Makefile; deploy/setup runs in a checkout only."""
    packages = ("schedagent", "agents", "verifier", "repo_store", "kernel_bpf")
    sources = [path for name in packages for path in (ROOT / name).rglob("*.py")]
    named = [str(path.relative_to(ROOT)) for path in sources if '"run: make' in path.read_text()]
    assert named == []
