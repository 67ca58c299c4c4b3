"""The KVM probe recognises a kernel that boots and one that does not, on a real QEMU (emulated: works everywhere)."""

from __future__ import annotations

import os

import pytest

from schedagent.core.settings import load_settings
from verifier.microvm import kvm
from verifier.microvm.kernels import default_kernel

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(("limit_s", "works"), [(60.0, True), (0.3, False)])
def test_real_kernel_in_emulation(monkeypatch: pytest.MonkeyPatch, limit_s: float, works: bool) -> None:
    monkeypatch.setattr(kvm, "kvm_arguments", lambda descriptor: ["-accel", "tcg,thread=multi", "-cpu", "max"])
    image = os.open(default_kernel(load_settings()).vmlinuz, os.O_RDONLY)
    try:
        probe = kvm._boot(kvm.qemu_command(0, image), (image,), limit_s)
    finally:
        os.close(image)
    assert probe.works is works, probe.reason
