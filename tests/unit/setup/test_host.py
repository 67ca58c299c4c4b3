"""What the doctor says of kernels that differ from the usual in one thing each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernel_bpf.observe.schedulers import Scheduler
from schedagent.setup import host
from schedagent.setup.finding import Finding
from schedagent.setup.host import host_kernel_findings

RELEASE = "7.3.4+deb13-amd64"
BUILD = "#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1 (2026-11-15)"
USUAL = {
    "sys/kernel/sched_ext/state": "disabled",
    "sys/kernel/btf/vmlinux": "",
    "sys/kernel/security/lockdown": "none [integrity] confidentiality",
    "sys/devices/system/cpu/possible": "0-7",
    "sys/devices/system/cpu/online": "0-7",
    "proc/sys/net/core/bpf_jit_enable": "1",
}


def bz_image(version: str) -> bytes:
    """The part of a bzImage that says what it is; Documentation/arch/x86/boot.rst."""
    header = bytearray(0x300)
    header[0x202:0x206] = b"HdrS"
    header[0x20E:0x210] = (0x60).to_bytes(2, "little")
    return bytes(header[:0x260]) + version.encode() + bytes(64)


def findings(folder: Path, *, version: str = BUILD, image: bytes = b"", **differing: str) -> dict[str, Finding]:
    for name, text in USUAL.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(differing.get(path.name, text) + "\n")
    if image:
        (folder / "boot").mkdir()
        (folder / f"boot/vmlinuz-{RELEASE}").write_bytes(image)
    kernel = os.uname_result(("Linux", "host", RELEASE, version, "x86_64"))
    return {finding.name: finding for finding in host_kernel_findings(folder, kernel)}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "other_schedulers", list)


@pytest.mark.parametrize("image", [b"", bz_image(f"{RELEASE} (somebody@somewhere) {BUILD}"), b"MZ of another kind"])
def test_a_usual_kernel_has_nothing_that_is_worth_a_line(tmp_path: Path, image: bytes) -> None:
    assert {name: each.status for name, each in findings(tmp_path, image=image).items()} == {
        "host sched_ext": "info",
        "host BTF": "info",
    }


@pytest.mark.parametrize(
    ("name", "differing"),
    [
        ("host BPF compiler", {"bpf_jit_enable": "0"}),
        ("host lockdown", {"lockdown": "none integrity [confidentiality]"}),
        ("host real time", {"version": "#1 SMP PREEMPT_RT Debian 7.3.4-1"}),
        ("host CPUs", {"online": "0-5"}),
        ("host kernel image", {"image": bz_image(f"{RELEASE} (somebody@somewhere) #1 SMP Debian 7.3.4-2")}),
    ],
)
def test_what_is_unusual_has_a_line_with_what_follows_and_what_to_do(
    tmp_path: Path, name: str, differing: dict[str, str]
) -> None:
    unusual = findings(tmp_path, **differing)
    assert set(unusual) == {"host sched_ext", "host BTF", name}
    assert unusual[name].consequence
    assert unusual[name].remedy


def test_files_that_may_not_be_read_say_nothing(tmp_path: Path) -> None:
    kernel = os.uname_result(("Linux", "host", RELEASE, BUILD, "x86_64"))
    assert [finding.detail for finding in host_kernel_findings(tmp_path, kernel)] == [f"not in {RELEASE}", "no"]


def test_who_starts_another_scheduler_again_and_again_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Scheduler("scx_loader", 7, "scx_loader.service")
    monkeypatch.setattr(host, "other_schedulers", lambda: iter([loader]))
    line = findings(tmp_path)["other schedulers"]
    assert line.detail == '"scx_loader", process 7 of scx_loader.service'
    assert line.remedy == "systemctl disable --now scx_loader.service"
