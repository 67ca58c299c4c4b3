"""schedagentd's record as its earlier versions wrote it: their tables and bodies, by their own words.

A version that is replaced gets its tables here, copied out of the program that wrote them, and a name.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

from schedagent.schedagentd.record import FILE
from tests.support.deploy_orders import CANARY, content_of, order_of

_FIRST = """
CREATE TABLE deployments (
    number INTEGER PRIMARY KEY AUTOINCREMENT, phase TEXT NOT NULL, digest TEXT NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE TABLE objects (digest TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, deployment INTEGER NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE TABLE nonces (nonce TEXT PRIMARY KEY, expires_at INTEGER NOT NULL) STRICT;
CREATE TABLE tripped (digest TEXT PRIMARY KEY, cause TEXT NOT NULL, at REAL NOT NULL) STRICT;
CREATE TABLE moments (name TEXT PRIMARY KEY, unix_s REAL NOT NULL) STRICT;
"""
_TOTALS = """
CREATE TABLE totals (
    what TEXT NOT NULL, stage TEXT NOT NULL, name TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (what, stage, name)
) STRICT;
"""
_KNOWN_GOOD_MEMBERS = {"tree": None, "better": None, "restores": 0, "own_words": ""}
_LATER_MEMBERS = {"tree": None, "better": None}
SECRET = "what a policy collected"

OLDER = {
    "first": (0, _FIRST, {}),
    "counting": (0, _FIRST + _TOTALS, {}),
    "unnumbered": (0, _FIRST + _TOTALS, _LATER_MEMBERS),
    "dumping": (3, _FIRST + _TOTALS, _LATER_MEMBERS | {"dump": SECRET}),
    "partial": (4, _FIRST + _TOTALS, _KNOWN_GOOD_MEMBERS),
}
"""Of each: the version it is marked with, its tables, and what its bodies hold besides those of the first."""

BOOT = "boot-0"
NONCE, SEEN = "ab" * 16, 1_700_000_000.0


def write(folder, name, **changes):
    """Write an older record with one deployment that ended by a trip, one that ran, and a used token.

    Args:
        changes: members of the one that ran.
    """
    version, tables, members = OLDER[name]
    folder.mkdir(mode=0o700)
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.executescript(tables)
        for number, phase in ((1, "ended"), (2, "running")):
            body = _body(number, phase) | members | (changes if phase == "running" else {})
            if version == 4:
                del body["dump"]
            database.execute(
                "INSERT INTO deployments VALUES (?, ?, ?, ?)",
                (number, phase, body["order"]["digest"], json.dumps(body)),
            )
            database.execute("INSERT OR IGNORE INTO objects VALUES (?, ?)", (body["order"]["digest"], content_of()))
            database.execute("INSERT INTO events VALUES (?, ?, 'accepted', ?, 'canary')", (number, SEEN, number))
        if "totals" in tables:
            rows = [("ended", "canary", "stall", 2), ("ended", "wider", "stall", 3), ("ended", "wider", "replaced", 4)]
            database.executemany("INSERT INTO totals VALUES (?, ?, ?, ?)", rows)
        trips = (("ab", "exited by itself"), ("cd", "stall"), ("ef", "lease lapsed"))
        for digest, cause in trips[:1] if version == 4 else trips:
            database.execute("INSERT INTO tripped VALUES (?, ?, ?)", (digest * 32, cause, SEEN))
        database.execute("INSERT INTO nonces VALUES (?, ?)", (NONCE, int(SEEN) + 86400))
        database.execute("INSERT INTO moments VALUES ('last seen', ?)", (SEEN,))
        database.execute(f"PRAGMA user_version = {version}")


def _body(number, phase):
    order = order_of()
    return {
        "number": number,
        "order": {
            "policy": order.policy,
            "digest": order.digest,
            "tunables": order.tunables,
            "history": order.history,
            "classes": order.classes,
            "report_digest": order.report_digest,
            "token": order.token,
        },
        "stage": "canary",
        "cgroup": CANARY,
        "phase": phase,
        "uid": 1000,
        "boot_id": BOOT,
        "lease_s": 600.0,
        "lease_until": 1600.0,
        "token_until": 9000.0,
        "created_at": SEEN,
        "since": 1000.0,
        "next_stage": None,
        "next_cgroup": "",
        "enable_seq": number,
        "proven": True,
        "pinned": False,
        "previous": number - 1,
        "baseline": {"delay": {"mean": 0.001, "deviation": 0.0001, "count": 12}},
        "end": "stall" if phase == "ended" else None,
        "detail": "failed to run" if phase == "ended" else "",
        "dump": "",
        "ended_at": SEEN if phase == "ended" else 0.0,
    }
