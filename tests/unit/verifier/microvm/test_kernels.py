"""Kernel images: finding, choosing, module order, and a download that is cut short."""

from __future__ import annotations

import lzma
import os
import subprocess
from pathlib import Path

import pytest

from schedagent.core.errors import SetupError, UsageError
from schedagent.core.settings import Settings
from verifier.microvm import kernels
from verifier.microvm.kernels import (
    KernelImage,
    default_kernel,
    fetch_kernel,
    find_kernels,
    module_closure,
    read_module,
    release_order,
)

NEW, OLD = "7.10.2+deb13-amd64", "7.9.11+deb13-amd64"
SCX = "CONFIG_SMP=y\nCONFIG_SCHED_CLASS_EXT=y\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")


def cached(settings: Settings, release: str) -> Path:
    folder = settings.kernels_dir / release
    (folder / "modules").mkdir(parents=True)
    (folder / "vmlinuz").write_bytes(b"MZ")
    (folder / "config").write_text(SCX)
    return folder


def module(path: Path, depends: str) -> None:
    """Make an ELF object with the .modinfo section that a kernel module has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = f'.section .modinfo,"a"\n.asciz "license=GPL"\n.asciz "depends={depends}"\n.asciz "name=x"\n'
    target = path.with_suffix("") if path.suffix == ".xz" else path
    subprocess.run(["as", "-o", target, "-"], input=source.encode(), check=True)
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(target.read_bytes()))
        target.unlink()


def image(modules_dir: Path) -> KernelImage:
    return KernelImage(NEW, Path("vmlinuz"), Path("config"), modules_dir, "boot")


def test_releases_sort_by_number_and_candidates_come_first() -> None:
    releases = ["6.9.1-amd64", "6.10-rc1-amd64", "6.10-amd64", "6.10.1-amd64"]
    shuffled = [releases[place] for place in (2, 3, 0, 1)]
    assert sorted(shuffled, key=release_order) == releases


def test_newest_is_the_default_and_settings_can_choose(settings: Settings, tmp_path: Path) -> None:
    cached(settings, OLD)
    cached(settings, NEW)
    assert [found.release for found in find_kernels(settings, tmp_path)] == [NEW, OLD]
    assert default_kernel(settings, tmp_path).release == NEW
    wanted = Settings(settings.cache_dir, settings.state_dir, kernel_release=OLD)
    assert default_kernel(wanted, tmp_path).release == OLD


def test_no_kernel_says_what_to_run(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        default_kernel(settings, tmp_path)
    assert caught.value.hint == "run: make kernel"
    wanted = Settings(settings.cache_dir, settings.state_dir, kernel_release="6.1.0-amd64")
    with pytest.raises(UsageError) as caught:
        default_kernel(wanted, tmp_path)
    assert caught.value.hint == "run: make kernel KERNEL=6.1.0-amd64"


@pytest.mark.parametrize(("config", "usable"), [(SCX, True), ("# CONFIG_SCHED_CLASS_EXT is not set\n", False)])
def test_hosts_own_kernel_serves_if_it_has_sched_ext(
    settings: Settings, tmp_path: Path, config: str, usable: bool
) -> None:
    release = os.uname().release
    (tmp_path / "boot").mkdir()
    (tmp_path / f"boot/vmlinuz-{release}").write_bytes(b"MZ")
    (tmp_path / f"boot/config-{release}").write_text(config)
    found = find_kernels(settings, tmp_path)
    assert [(entry.release, entry.origin) for entry in found] == ([(release, "boot")] if usable else [])


def test_unfinished_download_is_no_kernel(settings: Settings, tmp_path: Path) -> None:
    partial = settings.kernels_dir / ".partial/kept"
    partial.mkdir(parents=True)
    (partial / "vmlinuz").write_bytes(b"MZ")
    assert find_kernels(settings, tmp_path) == []


def test_modules_come_in_load_order(tmp_path: Path) -> None:
    module(tmp_path / "kernel/fs/9p/9p.ko", "9pnet,netfs")
    module(tmp_path / "kernel/net/9p/9pnet.ko.xz", "")
    module(tmp_path / "kernel/net/9p/9pnet-virtio.ko.xz", "9pnet")
    module(tmp_path / "kernel/fs/netfs/netfs.ko", "")
    module(tmp_path / "kernel/fs/other.ko", "netfs")
    found = module_closure(image(tmp_path), ["9p", "9pnet_virtio", "built_in", "9p"])
    assert [path.name.partition(".")[0] for path in found] == ["9pnet", "netfs", "9p", "9pnet-virtio"]
    assert read_module(tmp_path / "kernel/net/9p/9pnet.ko.xz").startswith(b"\x7fELF")


def test_missing_dependency_and_damaged_module_are_said(tmp_path: Path) -> None:
    module(tmp_path / "a.ko", "b")
    with pytest.raises(SetupError, match="module a depends on b"):
        module_closure(image(tmp_path), ["a"])
    (tmp_path / "c.ko.xz").write_bytes(b"not xz")
    with pytest.raises(SetupError, match="is damaged"):
        module_closure(image(tmp_path), ["c"])


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
    monkeypatch.setattr(kernels, "PrivateApt", lambda folder, sources: archive)
    monkeypatch.setattr(kernels, "_kernel_source", lambda: None)
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
    monkeypatch.setattr(kernels, "_NEEDED_MIB", 1 << 40)
    with pytest.raises(SetupError, match="MiB free"):
        fetch_kernel(settings)


def test_second_set_up_waits_for_the_first(settings: Settings, tmp_path: Path) -> None:
    import threading

    path, order = tmp_path / "lock", []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with kernels._locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with kernels._locked(path):
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("offered", [["6.18.15+deb13-amd64", "6.16.3+deb13-amd64"], []])
def test_an_older_major_version_is_had_if_the_mirror_has_one(
    settings: Settings, offer: Archive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, offered
) -> None:
    """Two kernels for the verifier; a mirror that dropped the old ones is told of, and is no error."""
    cached(settings, NEW)
    monkeypatch.setattr(kernels, "_complete_releases", lambda _apt: [NEW, OLD, *offered])
    fetched = []
    monkeypatch.setattr(kernels, "fetch_kernel", lambda _settings, release: fetched.append(release))
    kernels.fetch_older(settings)
    assert fetched == offered[:1]
    assert ("only: trixie-backports offers no older one" in caplog.text) == (not offered)


def test_an_older_kernel_in_the_cache_needs_no_network(settings: Settings) -> None:
    cached(settings, NEW)
    cached(settings, "6.16.3+deb13-amd64")
    found = kernels.fetch_older(settings)
    assert found is not None
    assert found.release == "6.16.3+deb13-amd64"
