"""What is restored stays renewable by its first number; trips count only what the policy did; no dumps of policies."""

from __future__ import annotations

import sqlite3

_OWN_DOING = "'ejected by the kernel', 'exited by itself', 'error events', 'rejected tasks'"
_WAITED = "'stall', 'starvation'"


def upgrade(database: sqlite3.Connection) -> None:
    """Forget what policies wrote into their dumps, for good; and trips that blame nobody, as far as that shows."""
    database.execute("PRAGMA secure_delete = ON")
    database.execute(
        "UPDATE deployments SET body = json_remove(json_set(body, '$.restores', 0, '$.own_words', ''), '$.dump')"
    )
    database.execute(
        f"DELETE FROM tripped WHERE cause NOT IN ({_OWN_DOING}) AND NOT (cause IN ({_WAITED}) AND EXISTS ("
        "SELECT 1 FROM deployments WHERE deployments.digest = tripped.digest"
        " AND json_extract(body, '$.stage') = 'full' AND json_extract(body, '$.end') = tripped.cause))"
    )
