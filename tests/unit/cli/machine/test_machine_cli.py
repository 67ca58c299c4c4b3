"""`schedagent setup` and `schedagent kernels`: what they print, what they run, and for whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schedagent.core.errors import SetupError
from schedagent.setup import packages, plan
from schedagent.setup.packages import Requirement
from tests.support.command_line import refused
from tests.support.kernel_files import NEW, OLD, cached
from verifier.microvm import kernel_download

COMMAND = ["apt-get", "install", "a b", "qemu-system-x86"]


@pytest.fixture
def machine(folders, monkeypatch):
    """A Debian where QEMU is missing until it is installed, and there is no kernel; notes what is done to it."""
    done = []
    missing = [Requirement("qemu-system-x86", "9.0")]

    def install(command):
        done.append(command)
        missing.clear()

    def fetch(settings, release):
        done.append(["fetch", release])
        return cached(settings, release or NEW)

    monkeypatch.setattr(plan, "missing_packages", lambda *_: list(missing))
    monkeypatch.setattr(packages, "missing_packages", lambda *_: list(missing))
    for module in (plan, packages):
        monkeypatch.setattr(module, "install_commands", lambda *_: [COMMAND])
    monkeypatch.setattr(packages, "run_as_root", install)
    monkeypatch.setattr(plan, "fetch_kernel", fetch)
    monkeypatch.setattr("os.uname", lambda: type("Name", (), {"release": "0.0-none"}))
    return done


@pytest.fixture
def ordinary(monkeypatch):
    """An ordinary user."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)


def test_without_yes_it_shows_what_it_would_do_and_does_nothing(run, machine):
    result = run("setup")
    assert result.exit_code == 1
    assert "missing packages: qemu-system-x86" in result.stdout
    assert "\n  apt-get install 'a b' qemu-system-x86\n" in result.stdout
    assert "kernels fetch\n" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("setup --yes")
    assert machine == []


def test_root_gets_packages_and_kernel(run, machine):
    result = run("setup", "--yes")
    assert result.exit_code == 0, result.output
    assert machine == [COMMAND, ["fetch", None]]
    assert result.stdout.splitlines()[-1] == f"nothing is missing; the VM runs kernel {NEW}"
    again = run("setup")
    assert (again.exit_code, again.stdout) == (0, f"nothing is missing; the VM runs kernel {NEW}\n")


@pytest.mark.usefixtures("ordinary")
@pytest.mark.parametrize(("sudo", "prefix"), [("/usr/bin/sudo", "sudo "), (None, "")])
def test_an_ordinary_user_is_shown_the_command_for_root_and_gets_the_rest(run, machine, monkeypatch, sudo, prefix):
    monkeypatch.setattr("shutil.which", lambda _name: sudo)
    result = run("setup", "--yes")
    assert f"\n  needs root: {prefix}apt-get install 'a b' qemu-system-x86\n" in result.stdout
    assert machine == [["fetch", None]], "the kernel needs no root"
    assert result.exit_code == 1, "the packages are still missing"


def test_a_kernel_that_cannot_be_downloaded_does_not_keep_the_packages_away(run, machine, monkeypatch):
    def refuse(*_):
        raise SetupError("kernels are downloaded from Debian's archive only", "take one")

    monkeypatch.setattr(plan, "fetch_kernel", refuse)
    result = run("setup", "--yes")
    assert machine == [COMMAND]
    assert "error: kernels are downloaded" in result.stderr
    assert result.exit_code == 1


def test_an_unknown_distribution_is_an_obstacle_and_the_kernel_is_got_all_the_same(run, machine, monkeypatch):
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "nixos", "PRETTY_NAME": "NixOS 26.05"})
    result = run("setup", "--yes")
    assert "this is NixOS 26.05" in result.stderr
    assert machine == [["fetch", None]]
    assert result.exit_code == 1


def test_setup_for_machines(run, machine):
    result = run("setup", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told == {
        "done": False,
        "distribution": "Debian or Ubuntu",
        "packages": ["qemu-system-x86"],
        "commands": [COMMAND],
        "commands_need_root": told["commands_need_root"],
        "kernel": "",
        "obstacles": [],
    }
    assert json.loads(run("setup", "--yes", "--json").stdout)["done"] is True


def test_kernels_are_listed_a_line_each_with_a_star_at_the_default(run, folders, monkeypatch):
    from schedagent.cli.common import settings

    for release in (NEW, OLD):
        cached(settings(), release)
    monkeypatch.setenv("SCHEDAGENT_KERNEL", OLD)
    monkeypatch.setenv("COLUMNS", "40")
    lines = run("kernels", "list").stdout.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == [
        f"{folders}/cache/kernels/{name}/vmlinuz" for name in (NEW, OLD)
    ]
    assert [line[0] for line in lines[:2]] == [" ", "*"]
    kernels = json.loads(run("kernels", "list", "--json").stdout)["kernels"]
    assert [(entry["release"], entry["origin"], entry["default"]) for entry in kernels] == [
        (NEW, "cache", False),
        (OLD, "cache", True),
    ]


def test_on_a_terminal_no_path_is_broken(run, folders):
    from schedagent.cli.common import settings
    from schedagent.cli.machine.kernels import _lines
    from verifier.microvm.kernels import HostKernel
    from verifier.microvm.kernels import cached as image

    kernel = image(cached(settings(), NEW))
    host = HostKernel("6.1.0", reason=f"{folders}/boot/vmlinuz-6.1.0 may not be read", remedy="run as root: x")
    lines = "\n".join(_lines([kernel], kernel, host, 40)).splitlines()
    assert lines[0].split() == ["*", NEW, "cache"]
    assert lines[1] == f"    {kernel.vmlinuz}"
    assert f"{folders}/boot/vmlinuz-6.1.0" in lines
    assert lines[-1] == "  run as root: x"


def test_without_a_kernel_the_list_shows_how_to_get_one_and_why_the_hosts_own_cannot_serve(run, monkeypatch):
    monkeypatch.setattr("os.uname", lambda: type("Name", (), {"release": "0.0-none"}))
    shown = run("kernels", "list").stdout
    assert "kernels fetch\n" in shown
    assert "the host's own, 0.0-none, cannot serve: its image is neither" in shown
    assert json.loads(run("kernels", "list", "--json").stdout)["host"]["usable"] is False


def test_fetch_takes_a_release_and_an_older_one(run, folders, monkeypatch):
    from schedagent.cli.common import settings
    from verifier.microvm.kernels import cached as image

    newest, older = (image(cached(settings(), release)) for release in (NEW, OLD))
    asked = []
    monkeypatch.setattr(kernel_download, "fetch_kernel", lambda _settings, release: asked.append(release) or newest)
    monkeypatch.setattr(kernel_download, "fetch_older", lambda _settings: older)
    assert run("kernels", "fetch").stdout == f"kernel {NEW} ({newest.vmlinuz})\n"
    assert run("kernels", "fetch", OLD).exit_code == 0
    assert asked == [None, OLD]
    assert OLD in run("kernels", "fetch", "--older").stdout
    assert asked == [None, OLD], "a kernel that is there will do beside an older one"


def test_use_of_what_is_no_kernel_is_refused(run, folders):
    Path(folders, "vmlinuz").write_bytes(b"no kernel")
    refused(run("kernels", "use", folders / "vmlinuz"), "is no bootable x86 kernel image", status=1)
