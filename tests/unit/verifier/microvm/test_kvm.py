"""The KVM probe's judgement and its memory; tests/vm/test_kvm_probe.py boots for real."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from schedagent.core.settings import Settings
from tests.support.as_user import as_user, let_others_in
from verifier.microvm import kvm
from verifier.microvm.kernels import KernelImage
from verifier.microvm.kvm import KvmProbe, how_to_be_admitted, kvm_usable


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(b"MZ")
    return KernelImage("7.3.4", vmlinuz, tmp_path / "config", tmp_path, "cache")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(kvm, "_KVM", tmp_path)  # something that exists
    monkeypatch.setattr(kvm, "qemu_version", lambda: "QEMU 10")
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path)


@pytest.mark.parametrize(
    ("script", "works", "said"),
    [
        ("echo 'VFS: Unable to mount root fs on unknown-block(0,0)'", True, "boots"),
        ("echo 'Probing EDD'; sleep 30", False, "had not booted after 0.5 s"),
        ("echo 'qemu-system-x86_64: failed to set MSR' >&2; exit 1", False, "status 1; failed to set MSR"),
        ("echo 'qemu-system-x86_64: warning: no such feature'", False, "status 0"),
    ],
)
def test_only_a_boot_is_believed(script: str, works: bool, said: str) -> None:
    probe = kvm._boot(["sh", "-c", script], (), 0.5)
    assert probe.works is works
    assert probe.reason.endswith(said) or said in probe.reason


def test_no_device_is_no_kvm(settings: Settings, kernel: KernelImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "_KVM", Path("/nowhere/kvm"))
    assert kvm_usable(settings, kernel) == KvmProbe(False, "there is no /nowhere/kvm")
    assert "cannot be opened" in kvm.probe_kvm(kernel).reason


def test_answer_is_remembered_until_the_kernel_changes(
    settings: Settings, kernel: KernelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = []

    def probe(image: KernelImage) -> KvmProbe:
        probes.append(image)
        return KvmProbe(True, f"probe {len(probes)}")

    monkeypatch.setattr(kvm, "probe_kvm", probe)
    assert kvm_usable(settings, kernel).reason == "probe 1"
    assert kvm_usable(settings, kernel).reason == "probe 1"
    kernel.vmlinuz.write_bytes(b"MZ2")
    assert kvm_usable(settings, kernel).reason == "probe 2"


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"key": 1, "probe": 2}', "\x00"])
def test_damaged_memory_means_probing_again(
    settings: Settings, kernel: KernelImage, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(kvm, "probe_kvm", lambda image: KvmProbe(False, "probed"))
    settings.cache_dir.mkdir()
    (settings.cache_dir / "kvm.json").write_text(damage)
    assert kvm_usable(settings, kernel).reason == "probed"
    assert kvm_usable(settings, kernel).reason == "probed"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for /dev/kvm, of the user nobody's reach."""
    place = tmp_path / "kvm"
    place.touch()
    os.chown(place, 0, grp.getgrnam("audio").gr_gid)
    place.chmod(0o660)
    let_others_in(tmp_path)
    monkeypatch.setattr(kvm, "_KVM", place)
    return place


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_may_not_open_the_device_is_told_which_group_to_join(
    settings: Settings, kernel: KernelImage, device: Path
) -> None:
    answer = as_user(pwd.getpwnam("nobody"), lambda: kvm_usable(settings, kernel))
    assert answer == repr(
        KvmProbe(
            False,
            f"{device} may not be opened by this user",
            "join the group audio: sudo usermod -aG audio nobody; then log in again",
        )
    )
    assert not settings.cache_dir.exists(), "it is not remembered: the user may join that group"


@pytest.mark.parametrize(
    ("gid", "mode", "members", "remedy"),
    [
        (7, 0o660, [], "join the group kvm: sudo usermod -aG kvm {user}; then log in again"),
        (7, 0o660, ["{user}"], "log in again: this session is not in group kvm yet"),
        (7, 0o600, [], "sudo setfacl -m u:{user}:rw {device}"),
        (0, 0o660, [], "sudo setfacl -m u:{user}:rw {device}"),
        (None, 0o660, [], "have root let your user read and write {device}"),
    ],
)
def test_how_to_be_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gid: int | None, mode: int, members: list[str], remedy: str
) -> None:
    user = pwd.getpwuid(os.geteuid()).pw_name
    device = tmp_path / "device"
    monkeypatch.setattr(Path, "stat", lambda _path: SimpleNamespace(st_gid=gid, st_mode=mode))

    def group(number: int | None) -> SimpleNamespace:
        if number is None:
            raise KeyError(number)
        return SimpleNamespace(gr_name="kvm", gr_mem=[member.format(user=user) for member in members])

    monkeypatch.setattr(kvm.grp, "getgrgid", group)
    assert how_to_be_admitted(device) == remedy.format(user=user, device=device)
