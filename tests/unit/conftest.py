"""Fixtures that several modules share."""

from __future__ import annotations

import pytest

from kernel_bpf.target import KernelTarget, prepare_target
from schedagent.core.settings import load_settings
from verifier.microvm.kernels import default_kernel


@pytest.fixture(scope="session")
def real_target() -> KernelTarget:
    """The newest kernel at hand, to compile for. Without one the tests fail and say what to run: make setup."""
    settings = load_settings()
    kernel = default_kernel(settings)
    return prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
