"""What schedagentd has deployed, as far as it can be known: from itself, or from its record while it does not run."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from repo_store.retention.unneeded import Deployed
from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import SchedagentError

RECORD = Path("/var/lib/schedagentd/record.sqlite")
"""Of schedagentd, read only if it does not answer."""
_MOST = 100
"""Deployments that it lists at once."""


def known_deployments(client: DaemonClient) -> tuple[Deployed, ...] | None:
    """Return the deployments of this machine; None if they cannot be known."""
    try:
        return _asked(client)
    except SchedagentError:
        return _read(RECORD)


def _asked(client: DaemonClient) -> tuple[Deployed, ...]:
    status, history = client.ask("status"), client.ask("history", limit=_MOST)["history"]
    alive = [status[name] for name in ("active", "waiting") if status[name]]
    return tuple({_deployed(stored, stored["digest"], stored["policy"]) for stored in (*alive, *history)})


def _read(record: Path) -> tuple[Deployed, ...] | None:
    try:
        if not record.parent.exists():
            return ()
        uri = f"file:{quote(str(record))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=2.0)) as database:
            bodies = [json.loads(body) for (body,) in database.execute("SELECT body FROM deployments")]
        return tuple(_deployed(body, body["order"]["digest"], body["order"]["policy"]) for body in bodies)
    except (sqlite3.Error, OSError, ValueError, KeyError, TypeError):
        return None


def _deployed(stored: dict[str, Any], digest: str, policy: str) -> Deployed:
    return Deployed(policy, digest, float(stored["created_at"]))
