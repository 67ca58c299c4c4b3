"""Pulses instead of canaries by partial switch, which only had what the default scheduler's tasks left."""

from __future__ import annotations

import sqlite3

_WHY = "it was a canary by partial switch, as an earlier version had them: deploy it again"


def upgrade(database: sqlite3.Connection) -> None:
    """Let no such canary be taken over, whatever phase it is in: what starts next ends it, and says why.

    The stage "wider" is counted with the canaries that it followed.
    """
    database.execute(
        "UPDATE deployments SET body = json_set(body, '$.pinned', json('false'), '$.end', 'schedagentd stopped',"
        " '$.detail', ?) WHERE phase != 'ended' AND json_extract(body, '$.stage') IN ('canary', 'wider')",
        (_WHY,),
    )
    database.execute(
        "UPDATE deployments SET body = json_set(json_remove(body, '$.next_stage', '$.next_cgroup'), '$.pulse_s', 0.0,"
        " '$.pairs', 0, '$.stage', replace(json_extract(body, '$.stage'), 'wider', 'canary'))"
    )
    database.execute(
        "INSERT INTO totals SELECT what, 'canary', name, count FROM totals WHERE stage = 'wider'"
        " ON CONFLICT DO UPDATE SET count = count + excluded.count"
    )
    database.execute("DELETE FROM totals WHERE stage = 'wider'")
