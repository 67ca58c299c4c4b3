"""Which distribution this is, and how its packages are listed; the answers of rpm and pacman are as they print them."""

from __future__ import annotations

import subprocess

import pytest

from schedagent.core.errors import SetupError
from schedagent.setup.distributions import (
    ARCH,
    DEBIAN,
    DISTRIBUTIONS,
    FEDORA,
    OPENSUSE,
    Distribution,
    distribution_of,
    this_distribution,
)
from schedagent.setup.packages import REQUIRED


@pytest.mark.parametrize(
    ("name", "like", "expected"),
    [
        ("debian", "", DEBIAN),
        ("ubuntu", "debian", DEBIAN),
        ("linuxmint", "ubuntu debian", DEBIAN),
        ("fedora", "", FEDORA),
        ("almalinux", "rhel centos fedora", FEDORA),
        ("arch", "", ARCH),
        ("cachyos", "arch", ARCH),
        ("opensuse-tumbleweed", "opensuse suse", OPENSUSE),
        ("opensuse-leap", "suse opensuse", OPENSUSE),
    ],
)
def test_it_is_known_by_its_id_or_by_what_it_is_like(name: str, like: str, expected: Distribution) -> None:
    assert distribution_of({"ID": name, "ID_LIKE": like}) is expected


@pytest.mark.parametrize("release", [{}, {"ID": "nixos", "PRETTY_NAME": "NixOS 26.05"}])
def test_another_is_named_with_those_that_are_known(release: dict[str, str]) -> None:
    with pytest.raises(SetupError) as caught:
        distribution_of(release)
    assert release.get("PRETTY_NAME", "something else") in caught.value.message
    assert all(distribution.name in caught.value.message for distribution in DISTRIBUTIONS)


def test_a_machine_without_os_release_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise OSError("Unable to read files /etc/os-release, /usr/lib/os-release")

    monkeypatch.setattr("platform.freedesktop_os_release", absent)
    with pytest.raises(SetupError, match="something else"):
        this_distribution()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda distribution: distribution.name)
def test_names_are_given_for_required_packages_only(distribution: Distribution) -> None:
    required = {entry.package for entry in REQUIRED}
    assert set(distribution.names) <= required
    if distribution is not DEBIAN:
        assert {"clang-19", "libbpf-dev", "libc6-dev"} <= set(distribution.names), "no other calls them so"


@pytest.mark.parametrize(
    ("distribution", "printed", "expected"),
    [
        (FEDORA, "clang 20.1.8\npackage bpftool is not installed\n", {"clang": "20.1.8"}),
        (ARCH, "clang 20.1.8-1\n", {"clang": "20.1.8-1"}),
        (DEBIAN, "make 4.3-4.1 installed\ngcc 4:12.2.0-3 config-files\nbpftool  not-installed\n", {"make": "4.3-4.1"}),
    ],
)
def test_installed_packages_are_read_from_what_the_package_manager_prints(
    monkeypatch: pytest.MonkeyPatch, distribution: Distribution, printed: str, expected: dict[str, str]
) -> None:
    done = subprocess.CompletedProcess([], 1, printed.encode(), b"")
    monkeypatch.setattr("schedagent.core.process.proc.run", lambda *_, **__: done)
    assert distribution.installed(["clang", "bpftool"]) == expected


def test_this_machine_is_asked_for_real() -> None:
    present = this_distribution().installed(["dpkg", "no-such-package-here"])
    assert set(present) == {"dpkg"}
