"""schedagentd's record stays small: what it lists is bounded, and a damaged one is kept aside a few times only."""

import pytest

from schedagent.core.deployment import End
from schedagent.schedagentd.record import FILE, KEPT_DAMAGED, Record, Trip


def test_only_the_latest_trips_are_kept(host, monkeypatch):
    monkeypatch.setattr("schedagent.schedagentd.record.KEPT_TRIPS", 3)
    rows = [(f"{number:064x}", End.STALL, float(number)) for number in range(10)]
    host.record._database.executemany("INSERT INTO tripped VALUES (?, ?, ?)", rows)
    assert len(host.record.trips(5.0)) == 10
    host.deploy()
    host.rollout.rollback(to_default=True)
    assert [trip.at for trip in host.record.trips(5.0)] == [9.0, 8.0, 7.0]
    assert host.record.trip_of(rows[9][0], 5.0) == Trip(rows[9][0], End.STALL, 9.0)
    assert host.record.trip_of(rows[0][0], 5.0) is None


@pytest.fixture
def clock(monkeypatch):
    """Damage that is found a second apart."""
    now = [1_800_000_000.0]
    monkeypatch.setattr("schedagent.schedagentd.record.time.time", lambda: now[0])
    return now


def test_few_damaged_records_are_kept_aside_the_latest(tmp_path, clock):
    by_hand = tmp_path / f"{FILE}.damaged-by-hand"
    by_hand.write_bytes(b"somebody's")
    for _ in range(KEPT_DAMAGED + 3):
        (tmp_path / FILE).write_bytes(b"no database" * 1000)
        (tmp_path / f"{FILE}-journal").write_bytes(b"nor a journal")
        clock[0] += 1
        Record.open(tmp_path).close()
    aside = sorted(path.name for path in tmp_path.glob(f"{FILE}.damaged-[0-9]*") if "journal" not in path.name)
    assert aside == [f"{FILE}.damaged-{int(clock[0]) - ago}" for ago in reversed(range(KEPT_DAMAGED))]
    assert len(list(tmp_path.glob("*-journal"))) <= KEPT_DAMAGED
    assert by_hand.exists()
