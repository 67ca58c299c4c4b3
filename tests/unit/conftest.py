"""Fixtures that several modules share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from kernel_bpf.build.target import KernelTarget, prepare_target
from schedagent.core.settings import load_settings
from tests.support.command_line import folders, run, script  # noqa: F401 - fixtures
from tests.support.daemon_processes import scripted_kernel
from tests.support.scripted_host import Host
from verifier.microvm.kernels import default_kernel

LONGEST = (
    "test_mcp", "test_prune", "test_static_gates", "test_installation", "test_fault_matrix", "test_mutation",
    "test_model_resume", "test_loop", "test_hostile_model", "test_pairs", "test_cli", "test_taint_rule",
    "test_workbench", "test_compose", "test_schedagentd_faults", "test_replaying", "test_source_checks", "test_face",
)  # fmt: skip
"""Modules of half a minute and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest modules: side by side each module is one worker's, and the last to begin ends last."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (rank.get(item.path.stem, len(rank)), -tests[item.path], item.path))


@pytest.fixture(autouse=True, scope="session")
def _no_proxy() -> Iterator[None]:
    """Let nothing stand between a test and its server on the loopback interface."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def real_target() -> KernelTarget:
    """The newest kernel at hand, to compile for. Without one the tests fail and say what to run: make setup."""
    settings = load_settings()
    kernel = default_kernel(settings)
    return prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """The socket of a scripted kernel in a process of its own, for real daemons."""
    with scripted_kernel(tmp_path_factory.mktemp("kernel")) as path:
        yield path


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path / "state")
    yield made
    made.record.close()


@pytest.fixture
def staying(tmp_path):
    """A host whose proven policies survive the daemon."""
    made = Host(tmp_path / "state", rollback="not_on_exit")
    yield made
    made.record.close()
