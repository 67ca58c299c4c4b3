"""The initramfs, and the life of a snapshot; booting and restoring are played, tests/vm/test_snapshots.py is real."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schedagent.core.errors import SetupError, VmLost
from verifier.microvm import image
from verifier.microvm.image import Entry, SnapshotStore, file_digest, newc, snapshot_key, sound, with_directories
from verifier.microvm.kernels import KernelImage
from verifier.microvm.topology import SHAPED

SIZE = {"cpus": 2, "memory_mib": 512, "kvm": False, "hostfs": False}


def unpack(archive: bytes) -> Iterator[Entry]:
    """Read a newc archive the way the kernel does: by the fields of each header."""
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        name = archive[offset + 110 : offset + 110 + fields[11] - 1].decode()
        if name == "TRAILER!!!":
            return
        start = (offset + 110 + fields[11] + 3) & ~3
        yield Entry(name, fields[1], archive[start : start + fields[6]])
        offset = (start + fields[6] + 3) & ~3


def test_an_archive_holds_what_was_put_in():
    entries = [Entry("a", 0o40755), Entry("a/five", 0o100644, b"12345"), Entry("a/link", 0o120777, b"five")]
    assert list(unpack(newc(entries))) == entries


def test_directories_come_before_what_they_hold():
    entries = with_directories([Entry("/a/b/c", 0o100644), Entry("/a", 0o40700), Entry("/a/b.so", 0o100644)])
    assert [entry.path for entry in entries] == ["/a", "/a/b", "/a/b.so", "/a/b/c"]
    assert entries[0].mode == 0o40700


def test_byte_code_is_what_python_runs(tmp_path):
    (compiled,) = image.byte_code([Entry("/x/colour.py", 0o100644, b"name = 'red'"), Entry("/x/data", 0o100644, b"?")])
    (tmp_path / "colour.py").write_text("name = 'blue'")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / Path(compiled.path).name).write_bytes(compiled.content)
    ask = [sys.executable, "-c", "import colour; print(colour.name)"]
    said = subprocess.run(ask, cwd=tmp_path, capture_output=True, check=True)
    assert said.stdout == b"red\n"
    assert Path(compiled.path).parent == Path("/x/__pycache__")


def test_the_agent_brings_all_it_needs():
    paths = {entry.path for entry in image.agent_entries()}
    assert {"/init", "/agent/verifier/guest/agent.py", "/agent/verifier/proving/mix.py"} <= paths
    assert any("libbpf.so" in path for path in paths)
    assert not [path for path in paths if "/schedagent/nodes" in path or "sqlalchemy" in path]


def test_a_digest_sees_every_byte_and_no_hole(tmp_path):
    dense, holey = tmp_path / "dense", tmp_path / "holey"
    content = bytearray(5 << 20)
    content[4_000_000] = 1
    dense.write_bytes(content)
    with holey.open("wb") as file:
        file.seek(4_000_000)
        file.write(b"\1")
        file.truncate(5 << 20)
    assert file_digest(dense) == file_digest(holey)
    seen = {file_digest(dense)}
    for position in (0, 3_999_999, 4_000_000, len(content) - 1):
        content[position] ^= 0xFF
        dense.write_bytes(content)
        seen.add(file_digest(dense))
    dense.write_bytes(content[:-1])
    seen.add(file_digest(dense))
    assert len(seen) == 6


class PlayedMachine:
    """Boots at once, saves a little, and restores unless the state says otherwise."""

    boots = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @classmethod
    def boot(cls, spec, snapshot):
        assert spec.initrd.stat().st_mode & 0o004
        assert os.fstat(snapshot.fileno()).st_mode & 0o022, "QEMU, as nobody, opens it for writing"
        assert spec.initrd.parent.stat().st_mode & 0o077 == 0, "which nobody else must be able to do"
        cls.boots += 1
        return cls()

    def save(self, file):
        file.write(b"state" * 10_000)

    @staticmethod
    def restored(spec, state):
        if state.stat().st_size != 50_000:
            raise VmLost("load of migration failed")
        return "a machine"


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(b"kernel")
    agent = tmp_path / "agent"
    agent.write_bytes(b"one")
    monkeypatch.setattr(image, "initrd_entries", lambda kernel: (Entry("/init", 0o100755, agent.read_bytes()),))
    monkeypatch.setattr(image, "Machine", PlayedMachine)
    monkeypatch.setattr(image, "restored", PlayedMachine.restored)
    monkeypatch.setattr(PlayedMachine, "boots", 0)
    snapshot_key.cache_clear()
    yield KernelImage("7.3", vmlinuz, tmp_path, tmp_path, "cache")
    snapshot_key.cache_clear()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "snapshots"


def place_of(folder):
    (place,) = (path for path in folder.iterdir() if path.is_dir())
    return place


def test_a_snapshot_is_built_once(kernel, folder):
    store = SnapshotStore(folder)
    assert [store.open(kernel, **SIZE), store.open(kernel, **SIZE), SnapshotStore(folder).open(kernel, **SIZE)]
    assert PlayedMachine.boots == 1
    assert (place_of(folder) / "state").stat().st_mode & 0o777 == 0o644


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"init") if b"init" in content else 3] ^= 1
    path.write_bytes(content)


DAMAGES = {"flip": flip, "delete": Path.unlink, "truncate": lambda path: os.truncate(path, 20)}


@pytest.mark.parametrize("name", ["state", "initrd", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_snapshot_is_built_anew(kernel, folder, name, damage):
    SnapshotStore(folder).open(kernel, **SIZE)
    damage(place_of(folder) / name)
    assert not sound(place_of(folder))
    assert SnapshotStore(folder).open(kernel, **SIZE) == "a machine"
    assert PlayedMachine.boots == 2
    assert sound(place_of(folder))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 20)])
def test_damage_after_the_check_is_noticed_by_the_failed_restore(kernel, folder, damage):
    store = SnapshotStore(folder)
    store.open(kernel, **SIZE)
    damage(place_of(folder) / "state")
    assert store.open(kernel, **SIZE) == "a machine"
    assert PlayedMachine.boots == 2


def test_a_whole_snapshot_that_will_not_restore_is_given_up(kernel, folder, monkeypatch):
    def lost(spec, state):
        raise VmLost("no answer")

    store = SnapshotStore(folder)
    store.open(kernel, **SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(image, "restored", lost)
        with pytest.raises(VmLost):
            store.open(kernel, **SIZE)
    assert PlayedMachine.boots == 1
    assert store.open(kernel, **SIZE) == "a machine"
    assert PlayedMachine.boots == 2


def test_the_key_follows_all_that_goes_in(kernel, tmp_path, monkeypatch):
    keys = [snapshot_key(kernel, **SIZE)]
    keys += [snapshot_key(kernel, **SIZE | change) for change in ({"cpus": 3}, {"memory_mib": 513}, {"hostfs": True})]
    keys += [snapshot_key(kernel, **SIZE, topology=SHAPED)]
    keys += [snapshot_key(kernel, **SIZE | {"kvm": True})]
    monkeypatch.setattr(image, "cpu_flags", lambda: "another CPU")
    snapshot_key.cache_clear()
    assert snapshot_key(kernel, **SIZE) == keys[0]
    keys += [snapshot_key(kernel, **SIZE | {"kvm": True})]
    for path in (kernel.vmlinuz, tmp_path / "agent"):
        path.write_bytes(b"changed")
        snapshot_key.cache_clear()
        keys.append(snapshot_key(kernel, **SIZE))
    monkeypatch.setattr(image, "KERNEL_ARGUMENTS", "other")
    snapshot_key.cache_clear()
    assert len({*keys, snapshot_key(kernel, **SIZE)}) == len(keys) + 1


def test_two_at_once_build_one(kernel, folder, monkeypatch):
    monkeypatch.setattr(PlayedMachine, "save", lambda self, file: (time.sleep(0.2), file.write(b"state" * 10_000)))
    opened = []
    threads = [
        threading.Thread(target=lambda: opened.append(SnapshotStore(folder).open(kernel, **SIZE))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["a machine"] * 3
    assert PlayedMachine.boots == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), VmLost("no boot"), OSError(errno.ENOSPC, "No space left")])
def test_a_build_that_fails_leaves_nothing(kernel, folder, monkeypatch, error):
    def fail(self, file):
        file.write(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(PlayedMachine, "save", fail)
        with pytest.raises(SetupError if isinstance(error, OSError) else type(error)):
            SnapshotStore(folder).open(kernel, **SIZE)
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert SnapshotStore(folder).open(kernel, **SIZE) == "a machine"


def test_what_a_killed_build_left_is_not_used(kernel, folder):
    SnapshotStore(folder).open(kernel, **SIZE)
    (place_of(folder) / "manifest.json").rename(place_of(folder) / "manifest.partial")
    SnapshotStore(folder).open(kernel, **SIZE)
    assert PlayedMachine.boots == 2


def test_a_folder_that_cannot_be_written_is_said(kernel, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot write to the cache folder") as refused:
        SnapshotStore(tmp_path / "file" / "snapshots").open(kernel, **SIZE)
    assert "SCHEDAGENT_CACHE" in refused.value.hint


def test_long_unused_snapshots_are_removed(kernel, folder):
    old = folder / hashlib.sha256(b"old").hexdigest()[:24]
    young = folder / hashlib.sha256(b"young").hexdigest()[:24]
    for place, days in ((old, 15), (young, 13)):
        place.mkdir(parents=True)
        os.utime(place, (0, time.time() - days * 86400))
    SnapshotStore(folder).open(kernel, **SIZE)
    assert (old.exists(), young.exists()) == (False, True)


def test_of_many_snapshots_those_used_last_stay(kernel, folder):
    places = [folder / hashlib.sha256(str(days).encode()).hexdigest()[:24] for days in range(1, 11)]
    for days, place in enumerate(places, 1):
        place.mkdir(parents=True)
        os.utime(place, (0, time.time() - days * 86400))
    (folder / "somebodys").mkdir()
    SnapshotStore(folder).open(kernel, **SIZE)
    assert [place.exists() for place in places] == [True] * 7 + [False] * 3, "with the new one, eight"
    assert (folder / "somebodys").exists()


def test_a_snapshot_is_used_whenever_a_machine_is_opened(kernel, folder):
    store = SnapshotStore(folder)
    store.open(kernel, **SIZE)
    os.utime(place_of(folder), (1, 1))
    store.open(kernel, **SIZE)
    assert place_of(folder).stat().st_mtime > time.time() - 60


def test_a_guest_has_its_kernels_configuration_where_libbpf_looks_for_it(tmp_path, monkeypatch):
    (tmp_path / "config").write_text("CONFIG_HZ=250\n")
    monkeypatch.setattr(image, "agent_entries", lambda: ())
    monkeypatch.setattr(image, "module_closure", lambda _kernel, _modules: [])
    kernel = KernelImage("7.3.4+deb13-amd64", tmp_path, tmp_path / "config", tmp_path, "cache")
    entries = {entry.path: entry.content for entry in image.initrd_entries(kernel)}
    assert gzip.decompress(entries["/boot/config-7.3.4+deb13-amd64"]) == b"CONFIG_HZ=250\n"
