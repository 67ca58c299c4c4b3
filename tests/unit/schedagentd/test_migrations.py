"""schedagentd's record over its versions: older ones are brought up to date, a newer one is refused and left alone."""

import dataclasses
import logging
import sqlite3
from contextlib import closing

import pytest

from schedagent.core.deployment import Deployment, End, Order, Phase, Stage, Tree
from schedagent.core.errors import RecordError
from schedagent.core.welch import Spread
from schedagent.schedagentd.__main__ import EXIT_FAILED, main
from schedagent.schedagentd.migrations import versions
from schedagent.schedagentd.migrations.versions import SCHEMA
from schedagent.schedagentd.record import FILE, Record, Trip
from tests.support import older_records
from tests.support.deploy_orders import CANARY, content_of
from tests.support.older_records import NONCE, OLDER, SECRET, SEEN
from tests.support.scripted_host import Host

BODY = {
    3: """
        number order stage cgroup phase uid boot_id lease_s lease_until token_until created_at since tree next_stage
        next_cgroup better enable_seq proven pinned previous baseline end detail dump ended_at;
        policy digest tunables history classes report_digest token; pid started; count mean deviation
    """,
    4: """
        number order stage cgroup phase uid boot_id lease_s lease_until token_until created_at since tree next_stage
        next_cgroup better enable_seq proven pinned previous restores baseline end detail own_words ended_at;
        policy digest tunables history classes report_digest token; pid started; count mean deviation
    """,
    5: """
        number order stage cgroup phase uid boot_id lease_s lease_until token_until created_at since tree pulse_s pairs
        better enable_seq proven pinned previous restores baseline end detail own_words ended_at;
        policy digest tunables history classes report_digest token; pid started; count mean deviation
    """,
}
"""What a deployment's body holds, by the version of the record that began with it."""


def schema_of(folder):
    with closing(sqlite3.connect(folder / FILE)) as database:
        rows = database.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").fetchall()
        [version] = database.execute("PRAGMA user_version").fetchone()
    return version, {name: "".join(sql.split()) for name, sql in rows}


def content_of_folder(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture(params=OLDER)
def older(request, tmp_path):
    """The folder of a record of an earlier version."""
    folder = tmp_path / "state"
    older_records.write(folder, request.param)
    return folder


def test_an_older_record_is_brought_up_to_date(older, tmp_path):
    with closing(Record.open(older)) as record:
        assert record.moved_aside is None
        assert record.used_nonces == {NONCE}
        assert record.last_seen >= SEEN
        assert record.trips(SEEN) == (Trip("ab" * 32, End.EXITED, SEEN),), "the others blame nobody for sure"
        ended, ran = record.get(1), record.get(2)
        assert (ended.phase, ended.end, ran.phase) == (Phase.ENDED, End.STALL, Phase.RUNNING)
        assert (ran.previous, ran.tree, ran.better, ran.order.tunables) == (1, None, None, (("slice_us", 5000),))
        assert record.content(ran.order.digest) == content_of()
        assert [event.deployment for event in record.events(0, 10)][:2] == [1, 2]
    assert SECRET.encode() not in (older / FILE).read_bytes()
    Record.open(tmp_path / "new").close()
    assert schema_of(older) == schema_of(tmp_path / "new")
    assert schema_of(older)[0] == SCHEMA


def test_a_daemon_carries_on_from_an_older_record(older):
    host = Host(older)
    assert (host.get(2).end, host.get(2).detail) == (End.STOPPED, "the machine was restarted")
    assert host.deploy("another").number == 3
    host.record.close()


@pytest.mark.parametrize("stage", ["canary", "wider"])
@pytest.mark.parametrize("phase", ["waiting", "loading", "running", "ending"])
@pytest.mark.parametrize("pinned", [True, False])
def test_a_canary_by_partial_switch_ends_whatever_it_was_at(tmp_path, stage, phase, pinned):
    """The daemon before pinned it, so that it is in charge still: it is taken away, and its tasks are moved back."""
    folder = tmp_path / "state"
    changes = {"stage": stage, "phase": phase, "pinned": pinned, "boot_id": "boot-1", "lease_until": 1e9}
    older_records.write(folder, "partial", **changes | {"next_stage": "full"})
    host = Host(tmp_path / "other")
    host.record.close()
    host.folder = folder
    host.world.policy = {"seq": 2, "ops": "good", "partial": True, "owners": [], "pin": 2, "exit": None} | {
        "enabled": True,
        "number": 2,
    }
    host.world.set(enable_seq=2, moved=[CANARY])
    host.start()
    assert (host.running, host.driver.active, host.world.moved, host.kernel.pinned()) == (None, None, [], ())
    ended = host.get(2)
    assert (ended.end, ended.phase, ended.stage) == (End.STOPPED, Phase.ENDED, Stage.CANARY)
    assert ended.detail.startswith("it was a canary by partial switch")
    assert host.rollout.policies()["tripped"] == [], "nobody blames it"
    host.record.close()


def test_what_has_the_whole_machine_stays(tmp_path):
    folder = tmp_path / "state"
    older_records.write(folder, "partial", stage="full", cgroup="", pinned=True, boot_id="boot-1", lease_until=1e9)
    with closing(Record.open(folder)) as record:
        [running] = record.unfinished()
        assert (running.stage, running.pinned, running.end) == (Stage.FULL, True, None)


def test_totals_of_wider_stages_are_those_of_canaries(tmp_path):
    older_records.write(tmp_path / "state", "partial")
    with closing(Record.open(tmp_path / "state")) as record:
        assert record.totals()["ended"] == [
            {"stage": "canary", "end": "replaced", "count": 4},
            {"stage": "canary", "end": "stall", "count": 5},
        ]


def test_every_body_of_an_older_record_has_the_members_of_todays(older):
    Record.open(older).close()
    with closing(sqlite3.connect(older / FILE)) as database:
        members = database.execute("SELECT DISTINCT key FROM deployments, json_each(body)").fetchall()
    assert {name for (name,) in members} == {field.name for field in dataclasses.fields(Deployment)}


def test_an_upgrade_that_fails_changes_nothing(older, monkeypatch):
    before = schema_of(older)

    def full(_database):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(versions, "_UPGRADES", (*versions._UPGRADES[:-1], full))
    with pytest.raises(RecordError, match="disk is full"):
        Record.open(older)
    assert schema_of(older) == before
    monkeypatch.undo()
    with closing(Record.open(older)) as record:
        assert record.used_nonces == {NONCE}


def of_a_newer_program(folder):
    """A record with a table, a kind of body and a version that this program does not know."""
    Record.open(folder).close()
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.execute("DROP TABLE tripped")
        database.execute("CREATE TABLE trips (digest TEXT) STRICT")
        database.execute("INSERT INTO deployments (phase, digest, body) VALUES ('running', 'x', '{\"other\": 1}')")
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")


def test_a_newer_record_is_refused_and_not_touched(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "state"
    of_a_newer_program(folder)
    before = content_of_folder(folder)
    for _attempt in range(2):  # nor does the first refusal keep the lock
        with pytest.raises(RecordError, match=f"newer schedagentd .version {SCHEMA + 1}, known here: {SCHEMA}"):
            Record.open(folder)
    assert content_of_folder(folder) == before
    monkeypatch.setattr("schedagent.schedagentd.protection.protect", lambda: ())  # of this very process
    config = tmp_path / "c.toml"
    config.write_text(f'state_dir = "{folder}"\nsocket = "{tmp_path}/s"\n')
    with caplog.at_level(logging.ERROR):
        assert main(["--config", str(config)]) == EXIT_FAILED
    assert "install the newer schedagent again" in caplog.text
    assert content_of_folder(folder) == before


def test_a_record_that_lost_a_table_is_damaged(tmp_path):
    """Without the table of used nonces every token would be new."""
    Record.open(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as database, database:
        database.execute("DROP TABLE nonces")
    with closing(Record.open(tmp_path)) as record:
        assert record.moved_aside is not None
        assert record.tokens_from > 0


def test_a_new_member_of_a_body_needs_a_version():
    """An older program would take a body with a member it does not know for damage, and move the record aside."""
    kinds = (Deployment, Order, Tree, Spread)
    members = "; ".join(" ".join(field.name for field in dataclasses.fields(kind)) for kind in kinds)
    assert " ".join(BODY[max(BODY)].split()) == members
    assert max(BODY) <= SCHEMA
