"""Kernel images: finding and choosing them, whether the host's own serves, and the order of modules."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from schedagent.core.errors import SetupError, UsageError
from schedagent.core.settings import Settings
from tests.support.kernel_files import NEW, OLD, SCX, cached, module
from verifier.microvm.kernels import (
    KernelImage,
    default_kernel,
    find_kernels,
    host_kernel,
    module_closure,
    read_module,
    release_order,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")


def image(modules_dir: Path) -> KernelImage:
    return KernelImage(NEW, Path("vmlinuz"), Path("config"), modules_dir, "host")


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


def own_kernel(
    root: Path, *, image: str = "boot/vmlinuz-REL", config: str = "boot/config-REL", text: str = SCX
) -> Path:
    """Put the running kernel below a root, as a distribution does, and return its image."""
    places = [root / place.replace("REL", os.uname().release) for place in (image, config)]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    places[0].write_bytes(b"MZ")
    places[1].write_bytes(gzip.compress(text.encode()) if places[1].suffix == ".gz" else text.encode())
    return places[0]


@pytest.mark.parametrize(
    ("image", "config"),
    [
        ("boot/vmlinuz-REL", "boot/config-REL"),  # Debian, Ubuntu
        ("lib/modules/REL/vmlinuz", "lib/modules/REL/config"),  # Fedora
        ("usr/lib/modules/REL/vmlinuz", "usr/lib/modules/REL/config"),  # openSUSE
        ("usr/lib/modules/REL/vmlinuz", "proc/config.gz"),  # Arch
    ],
)
def test_hosts_own_kernel_serves_if_it_has_sched_ext(
    settings: Settings, tmp_path: Path, image: str, config: str
) -> None:
    vmlinuz = own_kernel(tmp_path, image=image, config=config)
    [kernel] = find_kernels(settings, tmp_path)
    assert (kernel.release, kernel.vmlinuz, kernel.origin) == (os.uname().release, vmlinuz, "host")
    assert default_kernel(settings, tmp_path) == kernel


def test_why_the_hosts_own_kernel_cannot_serve_is_reported(settings: Settings, tmp_path: Path) -> None:
    release = os.uname().release
    assert f"boot/vmlinuz-{release}" in host_kernel(tmp_path).reason
    own_kernel(tmp_path, text="# CONFIG_SCHED_CLASS_EXT is not set\n")
    assert "without CONFIG_SCHED_CLASS_EXT" in host_kernel(tmp_path).reason
    with pytest.raises(SetupError, match="and the host's own cannot serve"):
        default_kernel(settings, tmp_path)
    (tmp_path / f"boot/config-{release}").unlink()
    assert "its configuration is neither" in host_kernel(tmp_path).reason


def test_an_image_that_may_not_be_read_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ubuntu keeps its images from everybody but root."""
    vmlinuz = own_kernel(tmp_path)
    vmlinuz.chmod(0o600)
    monkeypatch.setattr("os.access", lambda path, _mode: path.stat().st_mode & 0o004)  # as others than the owner
    host = host_kernel(tmp_path)
    assert host.image is None
    assert host.reason == f"{vmlinuz} may not be read (mode 0600)"
    assert host.remedy == f"run as root: chmod a+r {vmlinuz}"


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
    (tmp_path / "zipped.ko.gz").write_bytes(gzip.compress(b"\x7fELF"))
    assert read_module(tmp_path / "zipped.ko.gz") == b"\x7fELF"


def test_missing_dependency_and_damaged_module_are_said(tmp_path: Path) -> None:
    module(tmp_path / "a.ko", "b")
    with pytest.raises(SetupError, match="module a depends on b"):
        module_closure(image(tmp_path), ["a"])
    (tmp_path / "c.ko.xz").write_bytes(b"not xz")
    with pytest.raises(SetupError, match="is damaged"):
        module_closure(image(tmp_path), ["c"])
