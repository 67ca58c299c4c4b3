"""`make install` into a folder: complete, independent of where it was built, and gone without a trace."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.setup import environment, host, installation
from deploy.setup.environment import MINOR, ROOT
from deploy.setup.installation import Place, entries, install, purge, uninstall
from schedagent.core.errors import SetupError

PYTHON = Path(os.path.realpath(sys._base_executable))
SOME_LIBRARIES = ["typer", "cryptography"]
"""What the shortest commands and schedagentd need; one test installs all."""


@pytest.fixture
def few(monkeypatch):
    project = {**environment._project(), "dependencies": SOME_LIBRARIES}
    monkeypatch.setattr(environment, "_project", lambda: project)


@pytest.fixture
def place(tmp_path):
    yield Place(Path("/usr"), tmp_path / "root", PYTHON)
    shutil.rmtree(tmp_path / "root", ignore_errors=True)  # all libraries are 300 MB


def tree(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


def run(place, program, *words):
    venv = place.here(place.venv)
    command = [venv / "bin" / f"python{MINOR}", "-I", venv / "bin" / program, *words]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)


def test_all_of_it_runs_from_the_installed_tree(place):
    install(place, bytecode=False)
    assert run(place, "schedagent", "--version").stdout.startswith("schedagent ")
    listed = run(place, "schedagent", "policies", "show", "fair")
    assert (listed.returncode, "fair" in listed.stdout) == (0, True), listed.stderr
    packages = place.here(place.venv) / "lib" / f"python{MINOR}" / "site-packages"
    assert {"langgraph", "mcp", "numpy", "scipy", "sqlalchemy"} <= {path.name for path in packages.iterdir()}
    assert "pytest" not in {path.name for path in packages.iterdir()}, "what only tests need stays out"
    ours = {path.relative_to(ROOT) for name in environment.OURS for path in (ROOT / name).rglob("*") if path.is_file()}
    assert {path for path in ours if path.suffix != ".pyc"} <= tree(packages)


def test_what_is_installed_knows_how_it_was_installed(place, few):
    install(place, bytecode=False)
    venv = place.here(place.venv)
    program = (
        "from schedagent.core.errors import SetupError; from schedagent.core.process import proc\n"
        "try: proc.run(['/nowhere/qemu-system-x86_64'], timeout_s=5)\n"
        "except SetupError as error: print(error.hint)\n"
        "from schedagent.core.installation import this_installation; print(this_installation().by)"
    )
    command = [venv / "bin" / f"python{MINOR}", "-Ic", program]
    for by in ("make install", "Debian package"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.splitlines() == [f"run: {venv}/bin/schedagent setup", by]
        place.here(place.manifest).unlink(missing_ok=True)


def test_what_systemd_needs_is_in_its_place(place, few):
    install(place, bytecode=False)
    usr = place.destdir / "usr"
    assert (usr / "bin/schedagent").readlink() == Path("../lib/schedagent/venv/bin/schedagent")
    assert (usr / "sbin/schedagentd").resolve() == place.here(place.venv).resolve() / "bin/schedagentd"
    units = {path.name for path in (usr / "lib/systemd/system").iterdir()}
    assert {"schedagentd.service", "schedagentd.socket", "schedagent-verifier.service"} <= units
    assert (usr / "lib/sysusers.d/schedagentd.conf").exists()
    assert (usr / "lib/tmpfiles.d/schedagentd.conf").exists()
    assert (place.destdir / "etc/schedagent/schedagentd.toml").exists()


def test_nothing_names_the_folder_it_was_built_in(place, few):
    install(place)
    named = [
        path
        for path in place.destdir.rglob("*")
        if (os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b"").find(
            os.fsencode(place.destdir)
        )
        >= 0
    ]
    assert named == []
    compiled = next(place.destdir.rglob("kernel_bpf/load/__pycache__/libbpf.*.pyc")).read_bytes()
    assert os.fsencode(place.venv / f"lib/python{MINOR}/site-packages/kernel_bpf/load/libbpf.py") in compiled


def test_the_daemon_looks_nowhere_else_for_modules(place, few, tmp_path):
    """A folder that somebody else can write must not get code into root's process."""
    install(place, bytecode=False)
    for name in ("schedagent", "schedagentd", "schedagent-observer"):
        shebang = (place.here(place.venv) / "bin" / name).read_text().splitlines()[0]
        assert shebang == f"#!{place.venv}/bin/python{MINOR} -I"
    (tmp_path / "cryptography.py").write_text("raise SystemExit('from elsewhere')")
    venv = place.here(place.venv)
    command = [venv / "bin" / f"python{MINOR}", "-I", venv / "bin/schedagentd", "--nonsense"]
    told = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert "unknown arguments: --nonsense" in told.stderr


def test_nobody_but_its_owner_may_write(place, few):
    old = os.umask(0)
    try:
        install(place, bytecode=False)
    finally:
        os.umask(old)
    writable = [path for path in place.destdir.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert writable == []


def test_configuration_is_never_overwritten_and_stays(place, few):
    install(place, bytecode=False)
    configuration = place.destdir / "etc/schedagent/schedagentd.toml"
    configuration.write_text("users = ['me']\n")
    install(place, bytecode=False)
    uninstall(place)
    assert configuration.read_text() == "users = ['me']\n"
    left = {path for path in tree(place.destdir) if (place.destdir / path).is_file()}
    assert all(path.is_relative_to("etc/schedagent") for path in left)


def test_purging_leaves_nothing(place, few):
    install(place, bytecode=False)
    (place.destdir / "var/lib/schedagentd").mkdir(parents=True)
    uninstall(place)
    purge(place)
    assert {path for path in tree(place.destdir) if (place.destdir / path).is_file()} == set()
    assert not (place.destdir / "usr").exists()
    assert not list(place.destdir.rglob("*schedagent*"))


def test_what_cannot_be_removed_is_said(place, few, monkeypatch, capsys):
    """A disk that is mounted there, for one; silence would look like success."""

    def busy(path):
        raise OSError(16, "Device or resource busy", str(path))

    install(place, bytecode=False)
    words = ["--prefix", "/usr", "--destdir", str(place.destdir)]
    monkeypatch.setattr(shutil, "rmtree", busy)
    assert installation.main([*words, "purge"]) == 1
    assert "Device or resource busy" in capsys.readouterr().err
    monkeypatch.undo()
    assert installation.main([*words, "purge"]) == 0, "what was begun can be finished"
    assert not list(place.destdir.rglob("*schedagent*"))


def test_folders_of_others_stay(place, few):
    theirs = place.destdir / "usr/lib/systemd/system"
    theirs.mkdir(parents=True)
    for name in ("bin", "share"):
        (place.destdir / "usr" / name).mkdir()
    install(place, bytecode=False)
    install(place, bytecode=False)
    uninstall(place)
    assert theirs.is_dir()
    left = {str(path) for path in tree(place.destdir / "usr")}
    assert left == {"bin", "share", "lib", "lib/systemd", "lib/systemd/system"}, "empty, but not ours"


def test_an_upgrade_removes_what_is_no_more(place, few, monkeypatch):
    old = installation.Entry(Path("/usr/lib/systemd/system/schedagent-old.service"), b"[Unit]\n")
    before = entries
    monkeypatch.setattr(installation, "entries", lambda place: [*before(place), old])
    install(place, bytecode=False)
    assert place.here(old.path).exists()
    monkeypatch.setattr(installation, "entries", before)
    install(place, bytecode=False)
    assert not place.here(old.path).exists()


def test_another_prefix_is_named_in_the_units(tmp_path):
    texts = [
        entry.content.decode()
        for entry in entries(Place(Path("/opt/sa"), tmp_path))
        if entry.path.parent.name == "system"
    ]
    assert any("ExecStart=/opt/sa/sbin/schedagentd\n" in text for text in texts)
    assert any("ExecStart=/opt/sa/bin/schedagent verifier serve\n" in text for text in texts)
    assert not any("/usr/bin/schedagent" in text or "/usr/sbin/schedagentd" in text for text in texts)


def test_an_interpreter_of_another_version_is_refused(tmp_path):
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 3.9\n")
    other.chmod(0o755)
    with pytest.raises(SetupError, match=f"is Python 3.9, set-up's libraries are for {MINOR}"):
        environment.check_python(other)


def test_uninstalling_what_is_not_there_says_so(place):
    with pytest.raises(SetupError, match="manifest"):
        uninstall(place)


def test_all_libraries_are_known_by_their_requirements():
    found = environment.run_time_libraries(environment._project()["dependencies"])
    assert {"langgraph", "pydantic_core", "SQLAlchemy", "sniffio"} <= {library.name for library in found}
    with pytest.raises(SetupError, match="no-such-library"):
        environment.run_time_libraries(["no-such-library"])


@pytest.fixture
def systemd(monkeypatch):
    """A systemd that is asked, and does nothing; tests/host has a real one."""
    asked = []

    def run(command, timeout_s):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1 if "fails.service" in command else 0, b"", b"no such unit")

    monkeypatch.setattr(host.proc, "run", run)
    monkeypatch.setattr(host, "_managed", lambda: True)
    return asked


def test_systemd_makes_users_and_starts_nothing_that_did_not_run(tmp_path, systemd, caplog):
    caplog.set_level(logging.INFO)
    names = ("systemd/system/b.service", "systemd/system/b.socket", "sysusers.d/b.conf", "tmpfiles.d/b.conf")
    files = [tmp_path / name for name in names]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[Install]\n" if path.suffix == ".socket" else "")
    host.after_install(files)
    assert systemd == [
        ["systemd-sysusers", str(files[2])],
        ["systemd-tmpfiles", "--create", str(files[3])],
        ["systemctl", "daemon-reload"],
        ["systemctl", "try-restart", "b.service"],
    ]
    assert caplog.messages == ["to begin: systemctl enable --now b.socket"]


def test_uninstalling_stops_what_the_manifest_names_and_drops_pins(tmp_path, systemd, monkeypatch):
    monkeypatch.setattr(host, "PINS", tmp_path / "pins")
    monkeypatch.setattr(host, "SOCKETS", tmp_path / "run")
    (tmp_path / "pins/1").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    host.before_uninstall([Path("/usr/lib/systemd/system/b.service"), Path("/usr/bin/schedagent")])
    assert systemd == [["systemctl", "disable", "--now", "b.service"]]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SetupError, match="no such unit"):
        host.before_uninstall([Path("/usr/lib/systemd/system/fails.service")])
