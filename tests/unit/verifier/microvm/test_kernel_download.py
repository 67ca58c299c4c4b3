"""Downloading a kernel: what is kept, which release, and a download that is cut short or refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from schedagent.core.errors import SetupError
from schedagent.core.settings import Settings
from tests.support.kernel_files import NEW, OLD, SCX, cached, module
from verifier.microvm import kernel_download
from verifier.microvm.kernel_download import fetch_kernel
from verifier.microvm.kernels import find_kernels, module_closure


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")


class Archive:
    """Stands in for the private apt: one split kernel, as Debian packs it since 6.19."""

    def __init__(self, config: str = SCX, fail: bool = False) -> None:
        self.config, self.fail, self.updates = config, fail, 0
        self.packages = {
            "linux-image-amd64": ["linux-base-amd64", f"linux-image-{NEW}"],
            f"linux-image-{NEW}": ["kmod", f"linux-binary-{NEW}", f"linux-modules-{NEW}", f"linux-base-{NEW}"],
            f"linux-binary-{NEW}": [f"linux-base-{NEW}"],
            f"linux-modules-{NEW}": [],
            f"linux-base-{NEW}": [],
            f"linux-image-{OLD}": [f"linux-modules-{OLD}"],  # its modules are gone from the suite
        }

    def update(self) -> None:
        self.updates += 1

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.packages if name.startswith(prefix)]

    def depends(self, package: str) -> list[str]:
        return self.packages[package]

    def download(self, names: list[str], into: Path) -> list[Path]:
        root = into / "root"
        modules = root / "usr/lib/modules" / NEW
        module(modules / "kernel/fs/overlay.ko.xz", "exportfs")
        module(modules / "kernel/fs/exportfs.ko.xz", "")
        module(modules / "kernel/sound/noise.ko.xz", "")
        (modules / "vmlinuz").write_bytes(b"MZ")
        (modules / "config").write_text(self.config)
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN/control").write_text(
            "Package: k\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: t\n"
        )
        if self.fail:
            raise SetupError("the network is gone")
        subprocess.run(["dpkg-deb", "-b", root, into / "k.deb"], check=True, capture_output=True)
        return [into / "k.deb"]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Archive:
    archive = Archive()
    monkeypatch.setattr(kernel_download, "PrivateApt", lambda folder, sources: archive)
    monkeypatch.setattr(kernel_download, "_kernel_source", lambda: None)
    return archive


def test_download_keeps_what_is_needed(settings: Settings, offer: Archive) -> None:
    found = fetch_kernel(settings)
    assert (found.release, found.origin) == (NEW, "cache")
    assert sorted(path.name for path in found.modules_dir.iterdir()) == ["exportfs.ko", "overlay.ko"]
    assert [path.name for path in module_closure(found, ["overlay"])] == ["exportfs.ko", "overlay.ko"]
    assert sorted(path.name for path in settings.kernels_dir.iterdir()) == [".lock", NEW]
    assert fetch_kernel(settings, NEW) == found
    assert offer.updates == 1, "a kernel that is there needs no network"


def test_interrupted_download_leaves_nothing(settings: Settings, offer: Archive, tmp_path: Path) -> None:
    offer.fail = True
    with pytest.raises(SetupError, match="network is gone"):
        fetch_kernel(settings)
    assert [path.name for path in settings.kernels_dir.iterdir()] == [".lock"]
    offer.fail = False
    (settings.kernels_dir / ".partial/tree/junk").mkdir(parents=True)  # of a run that was killed
    assert fetch_kernel(settings).release == NEW
    assert not (settings.kernels_dir / ".partial").exists()


def test_kernel_without_sched_ext_is_refused(settings: Settings, offer: Archive, tmp_path: Path) -> None:
    offer.config = "# CONFIG_SCHED_CLASS_EXT is not set\n"
    with pytest.raises(SetupError, match="without CONFIG_SCHED_CLASS_EXT"):
        fetch_kernel(settings)
    assert find_kernels(settings, tmp_path) == []


@pytest.mark.usefixtures("offer")
@pytest.mark.parametrize("release", [OLD, "1.2.3-amd64", "../../etc"])
def test_release_that_is_not_complete_names_those_that_are(settings: Settings, release: str) -> None:
    with pytest.raises(SetupError, match="no complete kernel") as caught:
        fetch_kernel(settings, release)
    assert caught.value.hint == f"it has: {NEW}"


@pytest.mark.usefixtures("offer")
def test_no_space_is_said_before_the_download(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_download, "_NEEDED_MIB", 1 << 40)
    with pytest.raises(SetupError, match="MiB free"):
        fetch_kernel(settings)


@pytest.mark.parametrize("offered", [["6.18.15+deb13-amd64", "6.16.3+deb13-amd64"], []])
def test_an_older_major_version_is_had_if_the_mirror_has_one(
    settings: Settings, offer: Archive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, offered
) -> None:
    """Two kernels for the verifier; a mirror that dropped the old ones is told of, and is no error."""
    cached(settings, NEW)
    monkeypatch.setattr(kernel_download, "_complete_releases", lambda _apt: [NEW, OLD, *offered])
    fetched = []
    monkeypatch.setattr(kernel_download, "fetch_kernel", lambda _settings, release: fetched.append(release))
    kernel_download.fetch_older(settings)
    assert fetched == offered[:1]
    assert ("only: trixie-backports offers no older one" in caplog.text) == (not offered)


def test_an_older_kernel_in_the_cache_needs_no_network(settings: Settings) -> None:
    cached(settings, NEW)
    cached(settings, "6.16.3+deb13-amd64")
    found = kernel_download.fetch_older(settings)
    assert found is not None
    assert found.release == "6.16.3+deb13-amd64"


def test_elsewhere_than_on_debian_a_kernel_of_this_machine_is_the_way(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = {"ID": "arch", "PRETTY_NAME": "Arch Linux"}
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: release)
    with pytest.raises(SetupError, match="from Debian's archive only: this is Arch Linux") as caught:
        fetch_kernel(settings)
    assert "kernels use PATH" in caught.value.hint
