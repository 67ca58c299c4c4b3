"""Cache folders keep what was used last, and follow no link; locks hold although their files may be removed."""

import os
import re
import subprocess
import sys
import time

import pytest

from schedagent.core.errors import UsageError
from schedagent.core.retention.folder import Entry, entries, in_excess, mark_used, remove, trim
from schedagent.core.retention.limits import IN_USE_S, RETENTION, Keeper, Limit
from schedagent.core.retention.lock import locked
from tests.support.paths import ROOT

NAMES = re.compile("[a-z]+")
HOUR_S = 3600


def make(folder, name, *, mib=0.0, hours=0.0):
    """A file of this size, last used so many hours ago."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(b"x" * int(mib * (1 << 20)))
    at = time.time() - hours * HOUR_S
    os.utime(path, (at, at))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_least_recently_used_goes_first(tmp_path):
    for hours, name in enumerate("abcde", 2):
        make(tmp_path, name, mib=1, hours=hours)
    trim(tmp_path, NAMES, Limit("things", "here", Keeper.WRITER, count=3))
    assert names(tmp_path) == ["a", "b", "c"]
    trim(tmp_path, NAMES, Limit("things", "here", Keeper.WRITER, mib=2))
    assert names(tmp_path) == ["a", "b"]
    trim(tmp_path, NAMES, Limit("things", "here", Keeper.WRITER, count=2, mib=2))
    assert names(tmp_path) == ["a", "b"]


def test_what_is_unused_for_the_days_of_its_limit_goes_unless_only_prune_enforces_it(tmp_path):
    make(tmp_path, "old", hours=49)
    make(tmp_path, "young", hours=47)
    trim(tmp_path, NAMES, Limit("things", "here", Keeper.PRUNE, days=2))
    assert names(tmp_path) == ["old", "young"]
    trim(tmp_path, NAMES, Limit("things", "here", Keeper.BOTH, days=2))
    assert names(tmp_path) == ["young"]


def test_what_is_marked_as_used_stays(tmp_path):
    old = make(tmp_path, "old", hours=50)
    make(tmp_path, "newer", hours=20)
    mark_used(old, tmp_path / "nowhere")
    trim(tmp_path, NAMES, Limit("things", "here", Keeper.WRITER, count=1))
    assert names(tmp_path) == ["old"]


def test_what_was_used_within_the_hour_stays_whatever_the_limit():
    now = 1e9
    present = [Entry(name, 1, now - ago) for name, ago in (("a", 1), ("b", IN_USE_S - 1), ("c", IN_USE_S + 1))]
    assert [entry.name for entry in in_excess(present, Limit("", "", Keeper.WRITER, count=1), now)] == ["c"]


def test_links_and_foreign_names_are_neither_seen_nor_removed(tmp_path):
    outside = make(tmp_path / "outside", "precious", hours=99)
    cache = tmp_path / "cache"
    make(cache, "Foreign.txt", hours=99)
    (cache / "link").symlink_to(outside)
    (cache / "folderlink").symlink_to(outside.parent)
    (cache / "folder").mkdir()
    (cache / "folder" / "inside").symlink_to(outside.parent)
    assert entries(cache, NAMES) == []
    assert [entry.name for entry in entries(cache, NAMES, folders=True)] == ["folder"]
    assert remove(cache, "folder")
    assert names(cache) == ["Foreign.txt", "folderlink", "link"]
    assert outside.exists()


def test_a_folder_that_is_a_link_itself_is_left_alone(tmp_path):
    precious = make(tmp_path / "outside", "precious", hours=99)
    (tmp_path / "cache").symlink_to(precious.parent)
    assert entries(tmp_path / "cache", NAMES) == []
    assert not remove(tmp_path / "cache", "precious")
    assert precious.exists()


def test_what_has_gone_already_is_gone(tmp_path):
    assert remove(tmp_path, "nothing")
    assert entries(tmp_path / "nowhere", NAMES) == []


def test_a_hole_takes_no_room(tmp_path):
    (tmp_path / "snapshot").mkdir()
    with (tmp_path / "snapshot" / "state").open("wb") as file:
        file.truncate(1 << 30)
    assert entries(tmp_path, NAMES, folders=True)[0].bytes < 1 << 20


def test_a_lock_is_refused_while_another_process_holds_it(tmp_path):
    path = tmp_path / "x.lock"
    with locked(path, wait=False):
        assert try_lock(path) != 0
    assert try_lock(path) == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_who_waited_for_a_lock_whose_file_was_removed_locks_the_new_one(tmp_path):
    """Else two processes could hold the lock of one run at once."""
    path = tmp_path / "x.lock"
    code = f"{TRY}\nwith locked(path, wait=True): print(os.path.exists(path), flush=True); sys.stdin.read()"
    with locked(path, wait=False):
        waiter = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        time.sleep(1.0)
        path.unlink()
    assert waiter.stdout.readline() == "True\n"
    with pytest.raises(UsageError, match="another process holds"), locked(path, wait=False):
        pass
    waiter.communicate("")


TRY = """
import os, sys
from pathlib import Path
from schedagent.core.retention.lock import locked
path = Path(sys.argv[1])
"""


def try_lock(path):
    code = f"{TRY}\nwith locked(path, wait=False): pass"
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, check=False, capture_output=True
    ).returncode


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "x.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path / "x.lock", wait=False):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", RETENTION)
def test_every_limit_says_what_it_is(kind):
    limit = RETENTION[kind]
    assert limit.text, "nothing grows without bound"
    assert limit.place
