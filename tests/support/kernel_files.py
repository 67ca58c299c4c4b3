"""Files of kernels that are none: what finding, downloading and taking kernels look at."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

from schedagent.core.settings import Settings

NEW, OLD = "7.10.2+deb13-amd64", "7.9.11+deb13-amd64"
SCX = "CONFIG_SMP=y\nCONFIG_SCHED_CLASS_EXT=y\n"


def cached(settings: Settings, release: str) -> Path:
    folder = settings.kernels_dir / release
    (folder / "modules").mkdir(parents=True)
    (folder / "vmlinuz").write_bytes(b"MZ")
    (folder / "config").write_text(SCX)
    return folder


def module(path: Path, depends: str) -> None:
    """Make an ELF object with the .modinfo section that a kernel module has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = f'.section .modinfo,"a"\n.asciz "license=GPL"\n.asciz "depends={depends}"\n.asciz "name=x"\n'
    target = path.with_suffix("") if path.suffix == ".xz" else path
    subprocess.run(["as", "-o", target, "-"], input=source.encode(), check=True)
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(target.read_bytes()))
        target.unlink()
