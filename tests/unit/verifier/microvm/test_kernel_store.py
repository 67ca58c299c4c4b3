"""Taking a kernel of this machine into the cache: where its parts are looked for, what is kept, and why it is refused.

The images are made here: a header as the boot loader reads it, around a packed ELF file with or without BTF.
"""

from __future__ import annotations

import gzip
import os
import pwd
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from schedagent.core.errors import SetupError, UsageError
from schedagent.core.settings import Settings
from tests.support.as_user import as_user
from tests.support.kernel_files import NEW, SCX, module
from verifier.microvm import kernel_store
from verifier.microvm.kernel_store import DRIVERS, use_kernel
from verifier.microvm.kernels import default_kernel

BUILT_IN = SCX + "".join(f"{option}=y\n" for option in DRIVERS)
MODULAR = SCX + "".join(f"{option}=m\n" for option in DRIVERS)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")


def vmlinuz(path: Path, release: str = NEW, section: str = ".BTF") -> Path:
    """Make a bzImage (Documentation/arch/x86/boot.rst) whose payload has a section of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    elf = path.with_name("vmlinux.o")
    subprocess.run(["as", "-o", elf, "-"], input=f'.section {section},"a"\n.byte 1\n'.encode(), check=True)
    plain = elf.read_bytes()
    elf.unlink()
    payload = gzip.compress(plain) + struct.pack("<I", len(plain))
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    text = f"{release} (builder@host) #1 SMP\0".encode()
    image[0x300 : 0x300 + len(text)] = text
    path.write_bytes(bytes(image) + payload)
    return path


def modules(folder: Path) -> Path:
    """Make the folder of an installed kernel's modules."""
    for name in (*DRIVERS.values(), "noise"):
        module(folder / f"kernel/{name}.ko.xz", "")
    (folder / "modules.builtin").write_text("")
    return folder


def test_an_image_of_boot_finds_its_parts_where_a_distribution_puts_them(settings: Settings, tmp_path: Path) -> None:
    image = vmlinuz(tmp_path / f"boot/vmlinuz-{NEW}")
    (tmp_path / f"boot/config-{NEW}").write_text(MODULAR)
    modules(tmp_path / "lib/modules" / NEW)
    (tmp_path / "boot/vmlinuz").symlink_to(image.name)
    kernel = use_kernel(settings, tmp_path / "boot/vmlinuz", tmp_path)
    assert (kernel.release, kernel.origin) == (NEW, "cache")
    assert kernel.vmlinuz.read_bytes() == image.read_bytes()
    assert kernel.config.read_text() == MODULAR
    assert {path.name for path in kernel.modules_dir.iterdir()} == {f"{name}.ko" for name in DRIVERS.values()}
    assert default_kernel(settings, tmp_path) == kernel


def test_a_folder_of_modules_that_holds_the_image_is_enough(settings: Settings, tmp_path: Path) -> None:
    """As Fedora, Arch and openSUSE install kernels."""
    folder = modules(tmp_path / "usr/lib/modules" / NEW)
    vmlinuz(folder / "vmlinuz")
    (folder / "config").write_text(MODULAR)
    kernel = use_kernel(settings, folder, tmp_path)
    assert len(list(kernel.modules_dir.iterdir())) == len(DRIVERS)


def test_a_copied_folder_of_the_cache_is_taken_and_takes_the_place_of_the_older_one(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "copied"
    for name in DRIVERS.values():
        module(folder / f"modules/{name}.ko", "")
    image = vmlinuz(folder / "vmlinuz")
    (folder / "config").write_text(MODULAR)
    first = use_kernel(settings, folder, tmp_path)
    image.write_bytes(image.read_bytes() + b"newer")
    second = use_kernel(settings, folder, tmp_path)
    assert second == first
    assert second.vmlinuz.read_bytes().endswith(b"newer")
    again = use_kernel(settings, second.vmlinuz.parent, tmp_path)
    assert again.vmlinuz.read_bytes().endswith(b"newer"), "its own place in the cache is a folder like others"


@pytest.mark.parametrize(
    ("config", "section", "reason"),
    [
        (BUILT_IN.replace("SCHED_CLASS_EXT=y", "SCHED_CLASS_EXT=n"), ".BTF", "without CONFIG_SCHED_CLASS_EXT"),
        (BUILT_IN, ".BTF_ids", "has no BTF"),
        (SCX, ".BTF", "without CONFIG_VIRTIO_PCI, which the micro-VM needs"),
        (MODULAR, ".BTF", "module virtio_pci of kernel .* is not in"),
        ("", "", "its configuration|the configuration"),
    ],
)
def test_what_cannot_serve_is_refused_with_the_reason(
    settings: Settings, tmp_path: Path, config: str, section: str, reason: str
) -> None:
    image = vmlinuz(tmp_path / "vmlinuz", section=section or ".BTF")
    if config:
        (tmp_path / "config").write_text(config)
    with pytest.raises(SetupError, match=reason):
        use_kernel(settings, image, tmp_path)
    assert not (settings.kernels_dir / NEW).exists()


def test_drivers_that_are_built_in_need_no_modules(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(BUILT_IN)
    assert list(use_kernel(settings, vmlinuz(tmp_path / "vmlinuz"), tmp_path).modules_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\x7fELF", "is no bootable x86 kernel image"), (b"", "is no bootable"), (None, "is not there")],
)
def test_what_is_no_kernel_is_refused(settings: Settings, tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "vmlinuz").write_bytes(content)
    with pytest.raises(UsageError if content is None else SetupError, match=reason):
        use_kernel(settings, tmp_path, tmp_path)


@pytest.mark.parametrize("release", ["../../etc", "", "7/../../x"])
def test_a_release_is_no_path(settings: Settings, tmp_path: Path, release: str) -> None:
    with pytest.raises(SetupError, match="does not name its release"):
        use_kernel(settings, vmlinuz(tmp_path / "vmlinuz", release), tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_image_that_may_not_be_read_is_named(settings: Settings, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    image = vmlinuz(tmp_path / "vmlinuz")
    image.chmod(0o600)
    answer = as_user(pwd.getpwnam("nobody"), lambda: use_kernel(settings, image, tmp_path))
    assert answer == f"SetupError: {image} may not be read"


def test_a_link_in_the_place_of_the_lock_is_not_followed(settings: Settings, tmp_path: Path) -> None:
    settings.kernels_dir.mkdir(parents=True)
    (tmp_path / "precious").write_text("kept")
    (settings.kernels_dir / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), kernel_store.locked(settings):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_second_set_up_waits_for_the_first(settings: Settings) -> None:
    order: list[str] = []
    settings.kernels_dir.mkdir(parents=True)
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with kernel_store.locked(settings):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with kernel_store.locked(settings):
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
