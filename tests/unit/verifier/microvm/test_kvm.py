"""The KVM probe's judgement and its memory; tests/vm/test_kvm_probe.py boots for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from schedagent.core.settings import Settings
from verifier.microvm import kvm
from verifier.microvm.kernels import KernelImage
from verifier.microvm.kvm import KvmProbe, kvm_usable


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(b"MZ")
    return KernelImage("7.3.4", vmlinuz, tmp_path / "config", tmp_path, "cache")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(kvm, "_KVM", tmp_path)  # something that exists
    monkeypatch.setattr(kvm, "_qemu_version", lambda: "QEMU 10")
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
