"""`schedagent kernels`: the kernels with sched_ext that the VM can run."""

from __future__ import annotations

import logging
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schedagent.cli.common import Json, guarded, print_json, say, say_lines, settings

if TYPE_CHECKING:
    from verifier.microvm.kernels import HostKernel, KernelImage

PATH_BELOW = "\n    "

kernels_app = typer.Typer(help="Manage the kernels that the VM runs.", no_args_is_help=True, rich_markup_mode=None)


@kernels_app.command("list")
def list_kernels(as_json: Json = False) -> None:
    """List the kernels that the VM can run.

    The default has a star: the newest, or the one that SCHEDAGENT_KERNEL names. Shows why the host's own cannot serve,
    if it cannot.

    Example: schedagent kernels list
    """

    def command() -> int:
        from verifier.microvm.kernels import find_kernels, host_kernel

        kernels, host = find_kernels(settings()), host_kernel()
        wanted = settings().kernel_release
        default = next((image for image in kernels if wanted in ("", image.release)), None)
        if as_json:
            print_json(_to_json(kernels, default, host))
        else:
            from schedagent.core.terminal.console import open_console

            console = open_console()
            lines = _lines(kernels, default, host, console.width if console.is_terminal else 0)
            say_lines("\n".join(line.rstrip() for line in lines))
        return 0

    guarded(command)


@kernels_app.command()
def fetch(
    release: Annotated[
        str, typer.Argument(metavar="RELEASE", help="Release as uname -r prints it; the newest if left out.")
    ] = "",
    older: Annotated[
        bool, typer.Option("--older", help="Also get one of an older major version, if the mirror has one.")
    ] = False,
) -> None:
    """Download a kernel for the VM from Debian's backports.

    It is kept in the cache folder and not installed. This needs Debian's apt, but not root.

    Example: schedagent kernels fetch 6.18.15+deb13-amd64
    """

    def command() -> int:
        from verifier.microvm.kernel_download import ensure_kernel, fetch_kernel, fetch_older

        logging.getLogger("verifier.microvm").setLevel(logging.INFO)
        image = ensure_kernel(settings()) if older and not release else fetch_kernel(settings(), release or None)
        for kernel in (image, fetch_older(settings()) if older else None):
            if kernel:
                say(f"kernel {kernel.release} ({kernel.vmlinuz})")
        return 0

    guarded(command)


@kernels_app.command()
def use(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A vmlinuz, or a folder with vmlinuz, config and modules.")
    ],
) -> None:
    """Take a kernel that lies on this machine for the VM.

    Its configuration and modules are looked for beside it, in /boot and in /lib/modules. It is refused without
    CONFIG_SCHED_CLASS_EXT or BTF. It is copied into the cache folder with the few modules that are needed.

    Example: schedagent kernels use /lib/modules/7.0.1-arch1-1
    """

    def command() -> int:
        from verifier.microvm.kernel_store import use_kernel

        image = use_kernel(settings(), path)
        say(f"kernel {image.release} ({image.vmlinuz})")
        return 0

    guarded(command)


def _to_json(kernels: list[KernelImage], default: KernelImage | None, host: HostKernel) -> dict[str, Any]:
    return {
        "kernels": [
            {
                "release": image.release,
                "origin": image.origin,
                "path": str(image.vmlinuz),
                "default": image is default,
            }
            for image in kernels
        ],
        "host": {
            "release": host.release,
            "usable": host.image is not None,
            "reason": host.reason,
            "remedy": host.remedy,
        },
    }


def _lines(kernels: list[KernelImage], default: KernelImage | None, host: HostKernel, width: int = 0) -> list[str]:
    """Each kernel on a line, on a terminal with its path below; no path and no command is broken."""
    from schedagent.core.installation import this_installation

    longest = max((len(image.release) for image in kernels), default=0)
    lines = [
        f"{'*' if image is default else ' '} {image.release.ljust(longest)}  {image.origin.ljust(5)}"
        f"{PATH_BELOW if width else '  '}{image.vmlinuz}"
        for image in kernels
    ]
    if not kernels:
        lines.append(f"no kernel for the VM\n  {this_installation().command('kernels', 'fetch')}")
    if host.image is None:
        reason = f"the host's own, {host.release}, cannot serve: {host.reason}"
        lines += textwrap.wrap(reason, width or len(reason), break_long_words=False, break_on_hyphens=False)
    return [*lines, *([f"  {host.remedy}"] if host.remedy else [])]
