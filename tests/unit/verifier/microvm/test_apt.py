"""Reading apt's configuration in both formats, choosing the mirror, and the private apt itself on a local archive."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from schedagent.core.errors import SetupError
from verifier.microvm.apt import PrivateApt, Source, debian_mirror, distribution_sources, read_sources

needs_apt = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "apt-cache", "dpkg-deb"))), reason="no apt on this machine"
)

ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb [signed-by=/k.gpg arch=amd64,i386] http://mirror.example/debian bookworm main contrib # comment
deb-src http://mirror.example/debian bookworm main
deb http://vendor.example/apt stable main
deb http://vendor.example/flat ./
"""
DEB822 = """\
# the distribution
Types: deb deb-src
URIs: http://mirror.example/debian
# in between
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINB

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://mirror.example/off
Suites: bookworm
Components: main
"""


def etc(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        (tmp_path / "sources.list.d" / name.replace("_", ".")).write_text(text)
    return tmp_path


def test_one_line_format(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    sources = read_sources(tmp_path)
    assert sources == [
        Source(
            "http://mirror.example/debian",
            ("bookworm",),
            ("main", "contrib"),
            (("signed-by", "/k.gpg"), ("architectures", "amd64 i386")),
        ),
        Source("http://vendor.example/apt", ("stable",), ("main",)),
    ]


def test_deb822_format_keeps_an_inline_key_and_leaves_out_disabled_stanzas(tmp_path: Path) -> None:
    sources = read_sources(etc(tmp_path, debian_sources=DEB822, off_disabled=DEB822))
    assert [source.suites for source in sources] == [("bookworm", "bookworm-updates"), ("bookworm-security",)]
    stanza = sources[0].deb822()
    assert stanza.endswith("signed-by: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINB\n")


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    sources = read_sources(etc(tmp_path, a_sources=DEB822))
    again = tmp_path / "again"
    again.mkdir()
    assert read_sources(etc(again, b_sources="\n".join(source.deb822() for source in sources))) == sources


def test_mirror_is_the_distributions_own(tmp_path: Path) -> None:
    vendor = "deb http://vendor.example/apt stable main\n"
    sources = read_sources(etc(tmp_path, a_list=vendor, z_sources=DEB822))
    assert debian_mirror(sources, "bookworm").uri == "http://mirror.example/debian"
    assert [source.uri for source in distribution_sources(sources, "bookworm")] == [
        "http://vendor.example/apt",
        "http://mirror.example/debian",
        "http://mirror.example/security",
    ]


def test_no_mirror_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no network archive for bookworm"):
        debian_mirror(read_sources(etc(tmp_path)), "bookworm")


def package(folder: Path, name: str, version: str, depends: str = "") -> None:
    """Build a tiny .deb."""
    control = folder / name / "DEBIAN"
    control.mkdir(parents=True)
    lines = [f"Package: {name}", f"Version: {version}", "Architecture: all", "Maintainer: a <a@example.org>"]
    lines += [f"Depends: {depends}"] if depends else []
    (control / "control").write_text("\n".join([*lines, "Description: test", ""]))
    subprocess.run(["dpkg-deb", "-b", folder / name, folder / f"{name}_{version}.deb"], check=True, capture_output=True)


def archive(folder: Path) -> Source:
    """Make a flat local archive of two packages, as apt would see a mirror."""
    package(folder, "linux-image-1-amd64", "1.0", "kmod, linux-modules-1-amd64 (= 1.0), a | b")
    package(folder, "linux-modules-1-amd64", "1.0")
    stanzas = []
    for deb in sorted(folder.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "-f", deb], check=True, capture_output=True, text=True).stdout
        digest = subprocess.run(["sha256sum", deb], check=True, capture_output=True, text=True).stdout.split()[0]
        stanzas.append(f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    (folder / "Packages").write_text("\n".join(stanzas))
    return Source(f"copy:{folder}", ("./",), (), (("trusted", "yes"),))


@needs_apt
def test_private_apt_reads_and_downloads(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    apt = PrivateApt(tmp_path / "apt", [archive(mirror)])
    apt.update()
    assert apt.names("linux-") == ["linux-image-1-amd64", "linux-modules-1-amd64"]
    assert apt.depends("linux-image-1-amd64") == ["kmod", "linux-modules-1-amd64", "a"]
    assert [version for version, _ in apt.versions("linux-image-1-amd64")] == ["1.0"]
    debs = tmp_path / "debs"
    debs.mkdir()
    assert [path.name for path in apt.download(["linux-image-1-amd64"], debs)] == ["linux-image-1-amd64_1.0_all.deb"]


@needs_apt
def test_a_changed_package_is_refused(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    apt = PrivateApt(tmp_path / "apt", [archive(mirror)])
    apt.update()
    deb = mirror / "linux-modules-1-amd64_1.0.deb"
    deb.write_bytes(deb.read_bytes()[:-1] + b"!")
    debs = tmp_path / "debs"
    debs.mkdir()
    with pytest.raises(SetupError, match="apt-get download") as caught:
        apt.download(["linux-modules-1-amd64"], debs)
    assert "Hash Sum mismatch" in caught.value.message
    assert list(debs.glob("*.deb")) == []


@needs_apt
def test_an_archive_out_of_reach_is_an_error(tmp_path: Path) -> None:
    apt = PrivateApt(tmp_path / "apt", [Source(f"copy:{tmp_path}/none", ("./",), (), (("trusted", "yes"),))])
    with pytest.raises(SetupError, match="apt-get update"):
        apt.update()
