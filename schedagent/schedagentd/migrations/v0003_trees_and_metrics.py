"""A canary may be a process tree, and its keeper may report a metric of its own."""

from __future__ import annotations

import sqlite3


def upgrade(database: sqlite3.Connection) -> None:
    """Say of the deployments before that they had neither."""
    for member in ("tree", "better"):
        database.execute(
            "UPDATE deployments SET body = json_set(body, ?, NULL) WHERE json_type(body, ?) IS NULL",
            (f"$.{member}", f"$.{member}"),
        )
