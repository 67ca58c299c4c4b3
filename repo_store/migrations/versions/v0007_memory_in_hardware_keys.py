"""The memory of a machine becomes part of its key: a run may choose it, and what is measured depends on it."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Compute the keys of runs again; what failed follows the runs that had its key."""
    connection = op.get_bind()
    hardware_of = {
        run_id: (key, json.loads(hardware))
        for run_id, key, hardware in connection.execute(
            sa.text("SELECT id, hardware_key, hardware FROM runs ORDER BY started_at")
        )
    }
    changed = {}
    for run_id, (before, hardware) in hardware_of.items():
        changed[before] = key = _key(hardware)
        connection.execute(sa.text("UPDATE runs SET hardware_key = :key WHERE id = :id"), {"key": key, "id": run_id})
    for before, key in changed.items():
        connection.execute(
            sa.text("UPDATE antipatterns SET hardware_key = :key WHERE hardware_key = :before"),
            {"key": key, "before": before},
        )


def _key(hardware: dict[str, object]) -> str:
    minor = ".".join(str(hardware["kernel_release"]).split(".")[:2])
    parts = [hardware["cpu_model"], hardware["cpus"], hardware["memory_mib"], hardware["lab"], minor]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
