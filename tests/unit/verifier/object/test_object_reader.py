"""verifier.object.reader on compiled policies, against what pyelftools, libbpf and the sources say of them."""

import io
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from kernel_bpf.build import compile as compiler
from kernel_bpf.build.compile import BPF_INCLUDE, compile_policy
from kernel_bpf.build.target import KernelTarget
from kernel_bpf.load.bpf_object import BpfObject
from kernel_bpf.load.libbpf import libbpf
from kernel_bpf.policies.library import POLICIES
from schedagent.core.settings import load_settings
from tests.support.paths import FIXTURES
from verifier.object.declarations import essential
from verifier.object.image import MapInfo, Ref
from verifier.object.reader import read_object

TINY = KernelTarget("tiny", "0" * 40, FIXTURES / "none", FIXTURES / "tiny_kernel")
EVERY_REFERENCE = FIXTURES / "objects" / "every_reference.bpf.c"


@pytest.fixture(scope="module")
def every_reference():
    return read_object(compile_policy(EVERY_REFERENCE, "refs", TINY).object_bytes)


@pytest.fixture(scope="module")
def layered(real_target):
    """The largest bundled policy, compiled for the newest kernel at hand."""
    return compile_policy(
        POLICIES / "layered.bpf.c", "layered", real_target, cache_dir=load_settings().cache_dir
    ).object_bytes


def references(image, function):
    return [found.ref for found in image.functions[function].instructions if found.ref]


def test_every_kind_of_reference_by_name(every_reference):
    assert [(ref.kind.value, ref.name) for ref in references(every_reference, "refs_enqueue")] == [
        ("variable", ".rodata"),
        ("function", "step"),
        ("function", "step"),
        ("helper", "bpf_loop"),
        ("kfunc", "scx_bpf_insert___v2"),
        ("enum", "scx_dsq_id_flags.SCX_DSQ_LOCAL"),
        ("kfunc", "scx_bpf_insert___v2"),
        ("field", "task_struct.scx[1].slice"),
        ("field", "task_struct.pid"),
        ("ksym", "runqueues"),
        ("type", "task_struct"),
        ("field", "task_struct.scx"),
        ("variable", ".kconfig"),
        ("map", "nested"),
        ("helper", "bpf_map_lookup_elem"),
        ("variable", ".bss"),
    ]


def test_details_of_references(every_reference):
    found = {ref.name: ref for ref in references(every_reference, "refs_enqueue")}
    kfunc, enum = found["scx_bpf_insert___v2"], found["scx_dsq_id_flags.SCX_DSQ_LOCAL"]
    assert (kfunc.symbol, kfunc.weak) == ("scx_bpf_insert___v2___sa", True)
    assert (enum.symbol, enum.core_kind) == ("SCX_DSQ_LOCAL___sa", 11)
    assert not found["runqueues"].weak
    assert (found[".rodata"].symbol, found[".rodata"].offset) == ("slices", 0)
    assert (found["task_struct.scx"].core_kind, found["task_struct"].core_kind) == (2, 8)
    (constant,) = (i.imm for i in every_reference.functions["refs_enqueue"].instructions if i.ref is enum)
    assert constant == every_reference.enums["scx_dsq_id_flags.SCX_DSQ_LOCAL"] == 0x8000000000000002


def test_declarations_of_every_reference(every_reference):
    inner = MapInfo("nested.inner", 1, 4, 40, 3, 0, 0)
    assert every_reference.maps == {
        "nested": MapInfo("nested", 13, 4, 4, 2, 1, 1, inner),
        "flat": MapInfo("flat", 1, 4, 40, 3, 0, 0),
        "filled": MapInfo("filled", 12, 4, 4, 1, 0, 0, MapInfo("filled.inner", 1, 4, 40, 3, 0, 0)),
        "arena": MapInfo("arena", 33, 0, 0, 9, 0, 0),
    }
    ops, optional = every_reference.ops
    assert (optional.variable, optional.section) == ("optional", ".struct_ops")
    assert (ops.variable, ops.name, ops.section) == ("refs___x", "refs", ".struct_ops.link")
    assert ops.callbacks == {"enqueue": "refs_enqueue"}
    assert ops.numbers == {"flags": 8, "timeout_ms": 5000}
    assert every_reference.license == "GPL"
    slices = every_reference.variables["slices"]
    assert (slices.content, slices.volatile) == (struct.pack("<QQ", 1, 2), True)
    assert (every_reference.variables["count"].content, every_reference.variables["count"].size) == (b"", 4)
    step, program = (every_reference.functions[name] for name in ("step", "refs_enqueue"))
    assert (step.is_program, step.section, step.parameters) == (False, ".text", ("index", "data"))
    assert (program.is_program, program.section, program.parameters) == (True, "struct_ops/refs_enqueue", ("ctx",))


def test_raw_clang_output_reads_the_same(every_reference, monkeypatch):
    monkeypatch.setattr(compiler, "_without_dwarf", Path.read_bytes)
    raw = compile_policy(EVERY_REFERENCE, "refs", TINY).object_bytes
    assert b".debug_info" in raw
    assert read_object(raw) == every_reference


def test_line_of_every_call_is_the_one_that_calls(every_reference):
    source = EVERY_REFERENCE.read_text().splitlines()
    calls = [
        (found.ref.symbol or found.ref.name, found.line)
        for function in every_reference.functions.values()
        for found in function.instructions
        if found.opcode == 0x85
    ]
    assert len(calls) == 5
    for name, line in calls:
        assert line.file == "./every_reference.bpf.c"
        assert name in source[line.line - 1], (name, line)


def test_instructions_are_those_that_pyelftools_finds(layered):
    elf, image = ELFFile(io.BytesIO(layered)), read_object(layered)
    (symbols,) = elf.iter_sections("SHT_SYMTAB")
    functions = {symbol.name: symbol for symbol in symbols.iter_symbols() if symbol["st_info"]["type"] == "STT_FUNC"}
    assert functions.keys() == image.functions.keys()
    for name, symbol in functions.items():
        section = elf.get_section(symbol["st_shndx"])
        code = section.data()[symbol["st_value"] : symbol["st_value"] + symbol["st_size"]]
        assert image.functions[name].section == section.name
        assert b"".join(encode(found) for found in image.functions[name].instructions) == code


def encode(found):
    first = struct.pack("<BBh", found.opcode, found.dst | found.src << 4, found.offset)
    if found.opcode == 0x18:
        return first + struct.pack("<IiI", found.imm & 0xFFFFFFFF, 0, found.imm >> 32)
    return first + struct.pack("<i", found.imm)


def test_references_are_the_relocations_that_pyelftools_finds(layered):
    elf, image = ELFFile(io.BytesIO(layered)), read_object(layered)
    (symbols,) = elf.iter_sections("SHT_SYMTAB")
    compared = 0
    for section in elf.iter_sections("SHT_REL"):
        name = section.name.removeprefix(".rel")
        for function in (function for function in image.functions.values() if function.section == name):
            found = {8 * instruction.slot: instruction.ref for instruction in function.instructions}
            for relocation in section.iter_relocations() if name != ".text" else ():
                symbol = symbols.get_symbol(relocation["r_info_sym"])
                ref = found[relocation["r_offset"]]
                known = symbol["st_info"]["type"] not in ("STT_SECTION", "STT_FUNC")
                assert symbol.name in (ref.name, ref.symbol) or not known
                assert ref.weak == (symbol["st_info"]["bind"] == "STB_WEAK")
                compared += 1
    assert compared > 100


def test_maps_and_variables_are_those_that_libbpf_finds(layered):
    image, library = read_object(layered), libbpf()
    with BpfObject.open(layered, "layered") as opened:
        found = {
            name: (kind, *(get(at) for get in (library.bpf_map__key_size, library.bpf_map__value_size)))
            for at, name, kind in opened.maps()
            if name in image.maps
        }
        entries = {name: library.bpf_map__max_entries(at) for at, name, _kind in opened.maps() if name in image.maps}
        assert {name: (m.type, m.key_size, m.value_size) for name, m in image.maps.items()} == found
        assert {name: m.max_entries for name, m in image.maps.items()} == entries
        assert len(found) >= 4
        for section in (".rodata", ".data"):
            expected = {v.name: (v.offset, v.size_bytes, v.volatile) for v in opened.variables(section).values()}
            of_section = {v.name: v for v in image.variables.values() if v.section == section}
            assert {v.name: (v.offset, v.size, v.volatile) for v in of_section.values()} == expected


def test_lines_of_kfunc_calls_name_the_kfunc(layered):
    places = {"./include/": BPF_INCLUDE, "./": POLICIES}
    compared = 0
    for function in read_object(layered).functions.values():
        for found in function.instructions:
            if found.opcode != 0x85 or found.ref.kind is not Ref.KFUNC or "scx_bpf" not in found.ref.name:
                continue
            if found.ref.name.endswith("_bstr"):  # called by a macro of another name
                continue
            folder = next(prefix for prefix in places if found.line.file.startswith(prefix))
            source = (places[folder] / found.line.file.removeprefix(folder)).read_text().splitlines()
            near = " ".join(source[found.line.line - 3 : found.line.line + 4])
            assert found.ref.symbol in near, found.line
            compared += 1
    assert compared > 20


def test_names_lose_only_their_last_suffix():
    names = {"a___b": "a", "a___b___c": "a___b", "a____b": "a____b", "___a": "___a", "a___": "a___", "": ""}
    assert {name: essential(name) for name in names} == names
