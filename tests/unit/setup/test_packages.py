"""Which Debian packages are missing, and which suite each is taken from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from schedagent.core.errors import SetupError
from schedagent.core.installation import Installation, InstalledBy
from schedagent.setup import packages
from schedagent.setup.distributions import ARCH, DEBIAN
from schedagent.setup.packages import (
    LINTERS,
    REQUIRED,
    Requirement,
    _with_backports,
    missing_packages,
    run_as_root,
    version_numbers,
)
from tests.support.paths import ROOT
from verifier.microvm.apt import Source


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("1:10.0.2+ds-2+deb13u1~bpo12+1", (10, 0, 2)),
        ("7.1.0+6.1.170-1", (7, 1, 0)),
        ("2.36-9+deb12u14", (2, 36)),
        ("", ()),
        ("unknown", ()),
    ],
)
def test_version_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers


def test_requirement_compares_numbers_not_text() -> None:
    assert Requirement("qemu", "8.2").met_by("1:10.0.2+ds")
    assert not Requirement("qemu", "8.2").met_by("1:7.2+dfsg-7")
    assert Requirement("make").met_by("4.3-4.1")


def test_missing_is_absent_or_too_old() -> None:
    wanted = [Requirement("dpkg"), Requirement("dpkg", "999"), Requirement("no-such-package-here")]
    assert missing_packages(DEBIAN, wanted) == wanted[1:]


def test_versions_of_packages_count_only_where_they_are_those_of_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arch's package of bpftool has the kernel's version."""
    monkeypatch.setattr("schedagent.setup.distributions.Distribution.installed", lambda *_: {"bpf": "6.16-1"})
    assert missing_packages(ARCH, [Requirement("bpftool", "7.4"), Requirement("make")]) == [Requirement("make")]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDAGENT_CACHE", str(tmp_path / "cache"))


class FakeApt:
    """Offers what bookworm offers, and backports once they are among the sources."""

    main = {"qemu-system-x86": "1:7.2+dfsg", "gcc": "4:12.2.0"}  # noqa: RUF012
    backports = {"qemu-system-x86": "1:10.0.2+ds", "gcc": "4:13.0.0"}  # noqa: RUF012

    def __init__(self, folder: Path, sources: list[Source]) -> None:
        self.suites = [suite for source in sources for suite in source.suites]

    def update(self) -> None:
        pass

    def versions(self, package: str) -> list[tuple[str, str]]:
        found = [(self.backports[package], "bookworm-backports")] if "bookworm-backports" in self.suites else []
        return [*found, (self.main[package], "bookworm")]

    def install_command(self, names: list[str], suite: str = "") -> list[str]:
        return [suite, *names]


@pytest.fixture
def bookworm(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("http://mirror.example/debian", ("bookworm",), ("main",))
    monkeypatch.setattr(packages, "PrivateApt", FakeApt)
    monkeypatch.setattr(packages, "read_sources", lambda: [source])
    monkeypatch.setattr(packages, "distribution_codename", lambda: "bookworm")


@pytest.mark.usefixtures("bookworm")
def test_only_what_is_too_old_comes_from_backports(tmp_path: Path) -> None:
    wanted = [Requirement("gcc"), Requirement("qemu-system-x86", "8.2")]
    assert _with_backports(tmp_path, wanted) == [["", "gcc"], ["bookworm-backports", "qemu-system-x86"]]


@pytest.mark.usefixtures("bookworm")
def test_a_version_nobody_has_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no qemu-system-x86 >= 11"):
        _with_backports(tmp_path, [Requirement("qemu-system-x86", "11")])


def test_nothing_missing_leaves_apt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing_packages", lambda _distribution, wanted: [])
    monkeypatch.setattr(packages, "install", lambda *_: pytest.fail("apt was used"))
    assert packages.main([]) == 0


def test_failure_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise SetupError("it broke", "repair it")

    monkeypatch.setattr(packages, "missing_packages", lambda _distribution, wanted: [Requirement("gcc")])
    monkeypatch.setattr(packages, "install", refuse)
    assert packages.main([]) == 1
    assert "error: it broke\n  hint: repair it" in capsys.readouterr().err


def test_ordinary_user_without_sudo_is_given_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SetupError) as caught:
        run_as_root(["apt-get", "install", "a b"])
    assert caught.value.hint == "run as root: apt-get install 'a b'"


def test_only_a_checkout_gets_what_developing_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[str] = []

    def note(_distribution: object, requirements: list[Requirement]) -> list[Requirement]:
        wanted[:] = [entry.package for entry in requirements]
        return []

    monkeypatch.setattr(packages, "missing_packages", note)
    assert packages.main([]) == 0
    assert {"gcc", "clang-format-19", "libbpf1"} <= set(wanted)
    assert "lintian" not in wanted, "only make check wants it"
    installed = Installation(Path("/usr"), InstalledBy.DEBIAN, Path("/usr/bin/python3"))
    monkeypatch.setattr(packages, "this_installation", lambda: installed)
    assert packages.main([]) == 0
    assert {"gcc", "make", "clang-format-19"} & set(wanted) == set()
    assert {"libbpf1", "qemu-system-x86"} <= set(wanted)
    assert packages.main(["--linters"]) == 0
    assert wanted == [entry.package for entry in LINTERS]


def test_every_requirement_is_named_once() -> None:
    names = [entry.package for entry in REQUIRED]
    assert len(names) == len(set(names))


def test_unusable_cache_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCHEDAGENT_CACHE", str(tmp_path / "file/cache"))
    monkeypatch.setattr(packages, "missing_packages", lambda *_: pytest.fail("it went on"))
    assert packages.main([]) == 1
    assert "set SCHEDAGENT_CACHE" in capsys.readouterr().err


def test_it_needs_the_standard_library_only() -> None:
    """It runs before there is a virtual environment."""
    program = "import sys, schedagent.setup.packages; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {"schedagent", "verifier", "__main__"}
    assert {name for name in done.stdout.split() if not name.startswith("_")} - sys.stdlib_module_names <= ours
