"""`schedagent config show`: the settings in force, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from schedagent.cli.common import Json, guarded, print_json, say_lines, settings

if TYPE_CHECKING:
    from schedagent.core.settings import Setting

config_app = typer.Typer(help="Show the settings in force.", no_args_is_help=True, rich_markup_mode=None)


@config_app.callback()
def config() -> None:
    """Show the settings in force."""


@config_app.command("show")
def config_show(as_json: Json = False) -> None:
    """Show each setting, and where its value comes from.

    From the environment, else from the file, else the default. Of a secret, only whether it is set.

    Example: schedagent config show
    """

    def command() -> int:
        from schedagent.core.settings import explain_settings

        path, explained = settings().config_path, explain_settings()
        if as_json:
            rows = [{"key": entry.key, "value": _plain(entry.value), "origin": entry.origin} for entry in explained]
            print_json({"file": str(path), "settings": rows})
        else:
            absent = "" if path and path.exists() else ", which does not exist"
            say_lines("\n".join([f"# configuration file: {path}{absent}", *_lines(explained)]))
        return 0

    guarded(command)


def _lines(explained: Sequence[Setting]) -> Iterator[str]:
    """Yield a line for each setting, much as the file has it; what is not set is a comment."""
    for entry in explained:
        for name, value in _flat(entry.key, _plain(entry.value)):
            written = f"# {name} is not set" if value is None else f"{name} = {json.dumps(value, ensure_ascii=False)}"
            yield f"{written:<48}  # {entry.origin}"


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{key}.{name}", inner
    else:
        yield key, value


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
