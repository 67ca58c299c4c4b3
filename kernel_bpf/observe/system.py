"""What this machine is and does now, as far as scheduling goes: kernel, CPUs, sched_ext, pressure, load.

Everything is read from /proc and /sys, nothing is changed, and what a kernel does not show is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_CPU = re.compile(r"cpu[0-9]+")
_SHOWN_FEATURES = ("CONFIG_SCHED_CLASS_EXT", "CONFIG_SCHED_CORE", "CONFIG_DEBUG_INFO_BTF", "CONFIG_PSI", "CONFIG_HZ")


def cpus_in(text: str) -> tuple[int, ...]:
    """Read a list of CPUs as sysfs has it: "0-3,8"."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _dash, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1) if first else ()
    return tuple(cpus)


@dataclass(frozen=True)
class CpuPlace:
    """Where one online CPU sits; lists are in the kernel's own form ("0-3,8").

    Args:
        number: of the CPU.
        package, core: physical package, and core inside it; -1 if the kernel does not show it.
        siblings: CPUs that share its core (hardware threads).
        llc: CPUs that share its last level cache; empty if the kernel does not show it.
        node: NUMA node; -1 if the kernel does not show it.
    """

    number: int
    package: int
    core: int
    siblings: str
    llc: str
    node: int


@dataclass(frozen=True)
class SystemState:
    """One reading of a machine.

    Args:
        release: uname -r.
        config: build options of the kernel that matter here, where /boot or /proc has them.
        cpus: the online CPUs.
        memory_mib: of the machine; 0 if unknown.
        load: load averages over 1, 5 and 15 minutes, as /proc/loadavg has them.
        pressure: resource ("cpu", "io", "memory") -> "some" line of /proc/pressure; without PSI none.
        sched_ext: file of /sys/kernel/sched_ext ("state", "root/ops", ...) -> content; none without sched_ext.
        governor: frequency governor of the first CPU; empty if there is none.
    """

    release: str
    config: Mapping[str, str] = field(default_factory=dict)
    cpus: tuple[CpuPlace, ...] = ()
    memory_mib: int = 0
    load: str = ""
    pressure: Mapping[str, str] = field(default_factory=dict)
    sched_ext: Mapping[str, str] = field(default_factory=dict)
    governor: str = ""


def read_system(root: Path = Path("/")) -> SystemState:
    """Read what the machine is and does.

    Args:
        root: folder with proc, sys and boot in it.
    """
    release = _text(root / "proc/sys/kernel/osrelease")
    cpus = root / "sys/devices/system/cpu"
    pressure = {name: _text(root / "proc/pressure" / name) for name in ("cpu", "io", "memory")}
    state = root / "sys/kernel/sched_ext"
    files = ("state", "root/ops", "switch_all", "nr_rejected", "enable_seq", "hotplug_seq", "root/events")
    return SystemState(
        release=release,
        config=_config(root / "boot" / f"config-{release}"),
        cpus=tuple(_place(path) for path in _online(cpus)),
        memory_mib=_memory_mib(root / "proc/meminfo"),
        load=" ".join(_text(root / "proc/loadavg").split()[:3]),
        pressure={name: text.splitlines()[0] for name, text in pressure.items() if text},
        sched_ext={name: content for name in files if (content := _text(state / name))},
        governor=_text(cpus / "cpu0/cpufreq/scaling_governor"),
    )


def _online(folder: Path) -> list[Path]:
    """The folders of the online CPUs, by number; a CPU that cannot be taken offline has no file `online`."""
    cpus = [path for path in folder.glob("cpu*") if _CPU.fullmatch(path.name)]
    return sorted((path for path in cpus if _text(path / "online") != "0"), key=_number_of)


def _number_of(path: Path) -> int:
    return int(path.name.removeprefix("cpu"))


def _place(path: Path) -> CpuPlace:
    topology = path / "topology"
    levels = {_integer(cache / "level"): cache for cache in sorted(path.glob("cache/index*"))}
    node = next((int(link.name.removeprefix("node")) for link in path.glob("node[0-9]*")), -1)
    return CpuPlace(
        number=_number_of(path),
        package=_integer(topology / "physical_package_id"),
        core=_integer(topology / "core_id"),
        siblings=_text(topology / "thread_siblings_list"),
        llc=_text(levels[max(levels)] / "shared_cpu_list") if levels else "",
        node=node,
    )


def _config(path: Path) -> dict[str, str]:
    """Build options as Debian and others leave them beside the kernel."""
    lines = [line.partition("=") for line in _text(path).splitlines() if line.startswith("CONFIG_")]
    return {name: value for name, _equals, value in lines if name in _SHOWN_FEATURES}


def _memory_mib(path: Path) -> int:
    total = re.search(r"^MemTotal:\s*([0-9]+) kB", _text(path), re.MULTILINE)
    return int(total.group(1)) >> 10 if total else 0


def _integer(path: Path) -> int:
    text = _text(path)
    return int(text) if text.removeprefix("-").isdigit() else -1


def _text(path: Path) -> str:
    """Return what a file contains; empty if it is not there or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
