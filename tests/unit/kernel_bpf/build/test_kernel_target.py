"""kernel_bpf.build.target, with a small kernel image made here: a real ELF with real BTF and a build id."""

import gzip
import lzma
import os
import shutil
import struct
import threading
from pathlib import Path

import pytest
import zstandard

from kernel_bpf.build import target as targets
from kernel_bpf.build.compile import find_clang
from kernel_bpf.build.target import KernelTarget, enum_values, extract_elf, features, prepare_target
from schedagent.core.errors import SetupError
from schedagent.core.process import proc
from tests.support.paths import FIXTURES

TINY = FIXTURES / "tiny_kernel"
BUILD_ID = bytes(range(20))
SOURCE = """
#include "vmlinux.h"
static const struct { u32 namesz, descsz, type; char name[4]; unsigned char id[20]; } note
__attribute__((section(".note.gnu.build-id"), used)) = { 4, 20, 3, "GNU", { %s } };
struct sched_ext_ops ops;
enum scx_ops_flags flag;
struct scx_exit_info info;
int __attribute__((noinline)) scx_bpf_now(void) { return 1; }
int __attribute__((noinline)) unrelated(void) { return 2; }
"""


@pytest.fixture(scope="module")
def elf(tmp_path_factory) -> bytes:
    source = tmp_path_factory.mktemp("kernel") / "vmlinux.bpf.c"
    source.write_text(SOURCE % ", ".join(map(str, BUILD_ID)))
    return compiled(source)


def compiled(source: Path) -> bytes:
    """An ELF with BTF, straight from clang: the linker of BPF objects would refuse the note."""
    output = source.with_suffix(".o")
    clang, _version = find_clang()
    ran = proc.run([clang, "-target", "bpf", "-O2", "-g", f"-I{TINY}", "-c", source, "-o", output], timeout_s=60)
    assert ran.returncode == 0, ran.stderr
    return output.read_bytes()


def bz_image(elf: bytes, compress=lambda data: zstandard.ZstdCompressor().compress(data)) -> bytes:
    payload = compress(elf) + struct.pack("<I", len(elf))
    boot = bytearray(2 * 512)
    boot[0x1F1] = 1
    boot[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", boot, 0x248, 64, len(payload))
    return bytes(boot) + bytes(64) + payload + b"what follows the payload"


@pytest.fixture
def vmlinuz(elf, tmp_path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(elf))
    return path


def forbid_extraction(monkeypatch):
    def refuse(_image):
        raise AssertionError("unpacked although it was cached")

    monkeypatch.setattr(targets, "extract_elf", refuse)


@pytest.mark.parametrize(
    "compress",
    [
        lambda data: zstandard.ZstdCompressor().compress(data),
        gzip.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_XZ),
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    ],
    ids=["zstd", "gzip", "xz", "lzma"],
)
def test_every_packer(elf, compress):
    assert extract_elf(bz_image(elf, compress)) == elf


def test_uncompressed_image_is_taken_as_it_is(elf):
    assert extract_elf(elf) == elf


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda image: b"", "not a kernel image: starts with nothing"),
        (lambda image: b"MZ" + bytes(2000), "not a kernel image: starts with 4d 5a"),
        (lambda image: image[: len(image) // 2], "cut short"),
        (lambda image: image.replace(b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"), "known are: zstd, gzip, xz, lzma"),
        (lambda image: image[:1100] + b"\xff" * 300 + image[1400:], "damaged"),
        (lambda image: image[:-25] + b"\x7f" + image[-24:], "damaged"),
    ],
)
def test_unusable_images(elf, damage, told):
    with pytest.raises(SetupError) as caught:
        extract_elf(damage(bz_image(elf)))
    assert told in str(caught.value)


def test_target_has_the_kernel_types_and_features(vmlinuz, tmp_path):
    target = prepare_target(vmlinuz, "7.3.4", tmp_path / "cache")
    assert target.btf_build_id == BUILD_ID.hex()
    assert target.release == "7.3.4"
    assert "struct sched_ext_ops {" in (target.header_dir / "vmlinux.h").read_text()
    assert features(target) >= {"scx_bpf_now", "sched_ext_ops.enqueue", "SCX_OPS_SWITCH_PARTIAL", "scx_exit_info"}
    assert "unrelated" not in features(target)


def test_enum_values_are_read_from_the_header(tmp_path):
    target = KernelTarget("7", "ab", tmp_path / "vmlinux", tmp_path)
    with pytest.raises(SetupError, match="reads them again"):
        enum_values(target)
    text = "enum scx_enq_flags {\n\tSCX_ENQ_HEAD = 65536ULL,\n\tOTHER = 1,\n};\n\tSCX_KICK_IDLE = 1,\n\tSCX_LOW = -1,\n"
    (tmp_path / "vmlinux.h").write_text(text)
    assert enum_values(target) == {"SCX_ENQ_HEAD": 65536, "SCX_KICK_IDLE": 1, "SCX_LOW": -1}


def test_known_image_is_not_unpacked_again(vmlinuz, tmp_path, monkeypatch):
    first = prepare_target(vmlinuz, "7", tmp_path / "cache")
    forbid_extraction(monkeypatch)
    assert prepare_target(vmlinuz, "7", tmp_path / "cache") == first


def test_changed_image_is_unpacked_again(vmlinuz, elf, tmp_path):
    first = prepare_target(vmlinuz, "7", tmp_path / "cache")
    vmlinuz.write_bytes(bz_image(elf.replace(BUILD_ID, BUILD_ID[::-1])))
    second = prepare_target(vmlinuz, "7", tmp_path / "cache")
    assert second.btf_build_id == BUILD_ID[::-1].hex() != first.btf_build_id


@pytest.mark.parametrize("name", ["vmlinux", "vmlinux.h", "features.txt", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_damaged_folder_is_rebuilt(vmlinuz, tmp_path, name, damage):
    target = prepare_target(vmlinuz, "7", tmp_path / "cache")
    path = target.header_dir / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-7] if damage == "cut" else b"\0" * 7 + whole[7:])
    assert prepare_target(vmlinuz, "7", tmp_path / "cache") == target
    assert path.read_bytes() == whole


def test_two_at_once_agree_and_leave_nothing_behind(vmlinuz, tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(prepare_target(vmlinuz, "7", tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert {path.name for path in (tmp_path / "cache/btf").iterdir()} == {".lock", "images", BUILD_ID.hex()}


def test_leftover_of_a_killed_process_is_removed(vmlinuz, tmp_path):
    leftover = tmp_path / "cache/btf/.partial-killed"
    leftover.mkdir(parents=True)
    prepare_target(vmlinuz, "7", tmp_path / "cache")
    assert not leftover.exists()


def test_missing_image_and_unwritable_cache_are_setup_errors(vmlinuz, tmp_path):
    with pytest.raises(SetupError, match=r"cannot prepare the types of kernel 7: .*No such file"):
        prepare_target(tmp_path / "gone", "7", tmp_path / "cache")
    (tmp_path / "blocked").write_text("a file where the folder should be")
    with pytest.raises(SetupError, match="cannot prepare the types"):
        prepare_target(vmlinuz, "7", tmp_path / "blocked")


def test_image_without_btf_or_build_id(tmp_path):
    image = tmp_path / "vmlinuz"
    image.write_bytes(bz_image(Path(os.path.realpath(shutil.which("true"))).read_bytes()))
    with pytest.raises(SetupError, match="BTF"):
        prepare_target(image, "7", tmp_path / "cache")
    assert not list((tmp_path / "cache/btf").glob(".partial-*"))
    plain = tmp_path / "plain.bpf.c"
    plain.write_text("int x;\n")
    image.write_bytes(compiled(plain))
    with pytest.raises(SetupError, match="no GNU build id"):
        prepare_target(image, "7", tmp_path / "cache")
