"""`make deb`: what the package says of itself, and that its scripts know all that is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.setup import environment
from deploy.setup.installation import STATE, Place, entries
from deploy.setup.package import build, control, maintainer_scripts
from schedagent import __version__

WANTED = entries(Place(Path("/usr")))

with_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed")


def fields(text):
    return dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(" "))


def test_the_daemon_needs_little_and_the_verifier_is_recommended():
    told = fields(control(1000, "amd64"))
    assert told["Version"] == __version__
    assert told["Depends"].startswith(f"python{environment.MINOR}, libbpf1 (>= ")
    assert {"qemu-system-x86", "clang-19", "bubblewrap"} <= {word.split()[0] for word in told["Recommends"].split(", ")}
    assert "gcc" not in told["Recommends"]


def test_scripts_name_every_unit_and_all_state():
    scripts = dict(maintainer_scripts(WANTED))
    assert set(scripts) == {"postinst", "prerm", "postrm"}
    for entry in WANTED:
        if entry.path.parent.name == "system":
            assert entry.path.name in scripts["prerm"]
        if entry.path.parent.name in ("sysusers.d", "tmpfiles.d"):
            assert entry.path.name in scripts["postinst"]
    assert all(str(path) in scripts["postrm"] for path in STATE)
    for text in scripts.values():
        assert "@" not in text
        assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0


def test_an_upgrade_neither_stops_nor_unpins():
    """What runs stays loaded over an upgrade: only removing says otherwise."""
    prerm = dict(maintainer_scripts(WANTED))["prerm"]
    traced = subprocess.run(
        ["sh", "-x", "-s", "upgrade", "9.9"], input=prerm, capture_output=True, text=True, check=True
    )
    assert "systemctl" not in traced.stderr
    assert "rm " not in traced.stderr


def test_purging_goes_on_where_a_folder_cannot_be_removed(tmp_path):
    """Such as one that a disk is mounted on."""
    script = re.sub(r"rm -rf .*? \|\|", "rm -rf /proc/self/status ||", dict(maintainer_scripts(WANTED))["postrm"])
    script = script.replace("/run/systemd/system", str(tmp_path / "none"))
    purged = subprocess.run(["sh", "-s", "purge"], input=script, capture_output=True, text=True, check=False)
    assert purged.returncode == 0
    assert "/proc/self/status" in purged.stderr
    assert "this stays" in purged.stderr


@with_dpkg
def test_the_package_can_be_unpacked(tmp_path, monkeypatch):
    project = {**environment._project(), "dependencies": ["annotated-doc"]}
    monkeypatch.setattr(environment, "_project", lambda: project)
    made = build(tmp_path, bytecode=False)
    assert [path.name for path in tmp_path.iterdir()] == [made.name], "nothing else is left"
    root = tmp_path / "root"
    subprocess.run(["dpkg-deb", "--raw-extract", str(made), str(root)], check=True)
    assert (root / "DEBIAN/conffiles").read_text() == "".join(
        f"{entry.path}\n" for entry in WANTED if entry.configuration
    )
    subprocess.run(["md5sum", "--check", "--quiet", "DEBIAN/md5sums"], cwd=root, check=True)
    assert (root / "usr/bin/schedagent").is_symlink()
    assert not (root / "usr/lib/schedagent/manifest").exists(), "dpkg knows what it installed"
    listed = subprocess.run(["dpkg-deb", "-c", str(made)], capture_output=True, text=True, check=True).stdout
    assert all(" root/root " in line for line in listed.splitlines())
