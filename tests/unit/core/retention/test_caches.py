"""Whoever writes to a cache keeps it within its limit, and whoever reads from it notes that it was used."""

import os
import time
from dataclasses import replace

import pytest

from kernel_bpf.build import compile as compiling
from kernel_bpf.build import syntax, target
from kernel_bpf.build.compile import compile_policy
from schedagent.core.retention.limits import RETENTION
from schedagent.core.verification import GateResult, GateStatus, VerificationReport
from tests.support.old_state import DAY_S, write
from verifier import report_cache
from verifier.report_cache import ReportCache

SOURCE = '#include "common.bpf.h"\nint zero;\n'


@pytest.fixture
def small(monkeypatch):
    """Set the limit of a kind for a module."""

    def set_limit(module, kind, **bounds):
        limit = replace(RETENTION[kind], **({"count": 0, "mib": 0} | bounds))
        monkeypatch.setattr(module, "RETENTION", {**RETENTION, kind: limit})

    return set_limit


def old(folder, name, days, size=600 << 10):
    return write(folder / name, b"x" * size, time.time() - days * DAY_S)


def age_s(path):
    return time.time() - path.stat().st_mtime


class TestReports:
    @pytest.fixture
    def cache(self, tmp_path):
        return ReportCache(tmp_path / "reports", lambda _token, _digest: True)

    def report(self, number):
        gates = (GateResult("load", GateStatus.PASSED, ""),)
        return VerificationReport("fifo", "key", "ab" * 32, "7.3.4", gates, subject=f"{number:032x}", token="t")

    def test_the_least_recently_used_goes(self, cache, tmp_path, small):
        small(report_cache, "reports", mib=1)
        first, second = (old(tmp_path / "reports", f"{number:032x}.json", number) for number in (9, 8))
        foreign = old(tmp_path / "reports", "README", 99)
        cache.store(self.report(1))
        assert (first.exists(), second.exists(), foreign.exists()) == (False, True, True)
        assert cache.recall(f"{1:032x}") is not None

    def test_what_is_recalled_was_used_now(self, cache, tmp_path):
        cache.store(self.report(1))
        path = tmp_path / "reports" / f"{1:032x}.json"
        os.utime(path, (1, 1))
        assert cache.recall(f"{1:032x}") is not None
        assert age_s(path) < 60


def test_a_compiled_policy_that_is_found_was_used_now_and_a_new_one_drives_out_the_oldest(tmp_path, real_target, small):
    small(compiling, "objects", mib=1)
    source = tmp_path / "some.bpf.c"
    source.write_text(SOURCE)

    def compiled():
        compile_policy(source, "some", real_target, cache_dir=tmp_path)
        return {path.name for path in (tmp_path / "objects").iterdir()}

    (ours,) = compiled()
    os.utime(tmp_path / "objects" / ours, (1, 1))
    assert compiled() == {ours}
    assert age_s(tmp_path / "objects" / ours) < 60
    first, second = (old(tmp_path / "objects", f"{number:032x}", number) for number in (9, 8))
    source.write_text(SOURCE + "\n/* changed */\n")
    assert first.name not in compiled()
    assert second.exists()


def test_a_precompiled_header_that_is_found_was_used_now_and_a_new_one_drives_out_the_oldest(
    tmp_path, real_target, small
):
    small(syntax, "headers", count=2)
    first, second = (old(tmp_path / "pch", f"{number:032x}-{number:032x}.pch", number) for number in (9, 8))
    syntax.parse_source(SOURCE.encode(), "some.bpf.c", real_target, cache_dir=tmp_path)
    (ours,) = set((tmp_path / "pch").glob("*.pch")) - {first, second}
    assert (first.exists(), second.exists()) == (False, True)
    os.utime(ours, (1, 1))
    syntax.parse_source(SOURCE.encode(), "some.bpf.c", real_target, cache_dir=tmp_path)
    assert age_s(ours) < 60


def test_types_of_a_kernel_that_are_found_were_used_now(tmp_path, monkeypatch):
    root, image = tmp_path / "btf", write(tmp_path / "vmlinuz", b"kernel")
    place, memo = root / ("ab" * 20), target.memo_of(root, image)
    write(place / "manifest.json", b"{}")
    write(memo, b"ab" * 20)
    for path in (place, memo):
        os.utime(path, (1, 1))
    assert target.prepare_target(image, "7.3.4", tmp_path).header_dir == place
    assert age_s(place) < 60
    assert age_s(memo) < 60
