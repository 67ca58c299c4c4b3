"""verifier.object.reader on objects that no compiler wrote: each lie is refused, with words for it, and soon."""

import gc
import struct
import tracemalloc

import pytest

from schedagent.core.errors import PolicyError
from tests.support import elf_parts as elf
from tests.support.elf_parts import BtfParts, Named, Part, Parts
from tests.support.object_reader_contract import read_or_refuse
from tests.support.paths import FIXTURES
from verifier.object.image import Ref
from verifier.object.reader import read_object

OBJECTS = FIXTURES / "objects"
ENQUEUE = "struct_ops/p_enqueue"
OPS = ".struct_ops.link"


def test_the_sound_object_is_read():
    image = read_object(Parts.sound().build())
    assert list(image.functions) == ["p_enqueue", "p_init", "other"]
    assert [found.ref.name for found in image.functions["p_enqueue"].instructions if found.ref] == [
        *("table", "bpf_map_lookup_elem", ".rodata", "scx_bpf_now", "other")
    ]
    assert [function.is_program for function in image.functions.values()] == [True, True, False]
    assert image.ops[0].callbacks == {"enqueue": "p_enqueue", "init": "p_init"}
    assert image.ops[0].numbers == {"flags": 2, "bias": -5}
    assert image.enums == {"scx_flags.SCX_A": 3, "scx_flags.SCX_B": -1, "scx_dsq.SCX_LOCAL": 2 | 1 << 63}


def test_every_cut_of_the_sound_object_is_refused():
    whole = Parts.sound().build()
    assert all(read_or_refuse(whole[:length]) for length in range(0, len(whole), 7))


@pytest.mark.parametrize(
    "path", sorted(path for path in OBJECTS.iterdir() if path.suffix == ".o"), ids=lambda p: p.name
)
def test_what_the_fuzzer_kept_is_read_or_refused_as_ever(path):
    refused = read_or_refuse(path.read_bytes())
    assert bool(refused) == path.name.startswith("refused_"), refused
    assert path.stat().st_size < 4096


def header(**fields):
    def change(parts):
        parts.header.update(fields)

    return change


def section(name, **fields):
    def change(parts):
        part = parts.sections[name]
        for field, value in fields.items():
            setattr(part, field, value)

    return change


def symbol(symbol_name, /, **fields):
    def change(parts):
        found = parts.symbol(symbol_name)
        for field, value in fields.items():
            setattr(found, field, value)

    return change


def added(name, **fields):
    def change(parts):
        parts.sections[name] = Part(**fields)

    return change


def more_symbols(*symbols):
    def change(parts):
        parts.symbols += symbols

    return change


def relocated(section, *rows):
    def change(parts):
        parts.relocations[section] = list(rows)

    return change


def code(content, *rows):
    """Replace the code of enqueue and its relocations."""

    def change(parts):
        parts.sections[ENQUEUE].content = content
        parts.symbol("p_enqueue").size = len(content)
        parts.relocations[ENQUEUE] = list(rows)

    return change


def btf(change_types):
    def change(parts):
        change_types(parts.btf)

    return change


def raw_btf(content):
    return added(".BTF", content=content)


EMPTY_BTF = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0"


def types(words, strings=b"\0"):
    raw = struct.pack(f"<{len(words)}I", *words)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(raw), len(raw), len(strings)) + raw + strings


FILES = {
    "no 64-bit little-endian": header(identity=b"\x7fELF\x01\x01\x01"),
    "no relocatable BPF object: file type 1, machine 62": header(machine=62),
    "0 sections of": header(count=0),
    "65535 sections of": header(count=65535),
    "sections of 0 bytes each": header(entry=0),
    "names in section 65535": header(names=65535),
    "a table of 14 sections at byte": header(table=1 << 63),
    "a section takes bytes 64 to 9223372036854775872": section(ENQUEUE, size=1 << 63),
    "a section takes bytes 18446744073709551615": section(ENQUEUE, offset=(1 << 64) - 1),
    "2 symbol tables": added(".more", type=elf.SYMTAB, link=".strtab"),
    "the symbols' names are in section 3, which is no": added(".symtab", type=elf.SYMTAB, link=3),
    "symbol 'count' lies in section 999": symbol("count", section=999),
    "a symbol table of 23 bytes": added(".symtab", type=elf.SYMTAB, link=".strtab", content=bytes(23)),
    "holds bytes that are no printable ASCII": symbol("count", name=b"\x1b[2J"),
    "the name of a symbol does not end": symbol("count", name="x" * 10_000),
    "holds bytes that are no printable ASCII: b'struct_ops/\\xff'": added(b"struct_ops/\xff", content=b"1"),
    "is for section 99": added(".relx", type=elf.REL, info=99, content=bytes(16)),
    "relocates 'struct_ops/p_enqueue'": added(".rela", type=elf.REL, info=ENQUEUE, content=bytes(16)),
    "of 15 bytes relocates": added(f".rel{ENQUEUE}", type=elf.REL, info=ENQUEUE, content=bytes(15)),
    "is outside its 64 bytes": relocated(ENQUEUE, (1 << 63, "table", 1)),
    "or not at a multiple of 8": relocated(ENQUEUE, (4, "table", 1)),
    "names symbol 4294967295 of": relocated(ENQUEUE, (0, 0xFFFFFFFF, 1)),
    "is there twice": relocated(ENQUEUE, (0, "table", 1), (0, "slice_us", 1)),
    "it has no BTF": lambda parts: parts.sections.update({".BTF": Part(elf.NOBITS)}),
}

FUNCTIONS = {
    "two global symbols are called 'other'": lambda parts: parts.program("other", ".text2", elf.EXIT),
    "two global symbols are called 'count'": more_symbols(Named("count", ".rodata", 8, 8, elf.OBJECT, elf.WEAK)),
    "the functions 'p_enqueue' and 'second' overlap": more_symbols(Named("second", ENQUEUE, 8, 16, elf.FUNC)),
    "'p_enqueue' leaves section": symbol("p_enqueue", size=72),
    "'p_init' leaves section": symbol("p_init", value=(1 << 64) - 8),
    "more than 4096 functions or 131072 instructions": symbol("p_enqueue", size=(1 << 63)),
    "'p_enqueue' of 0 bytes": symbol("p_enqueue", size=0),
    "'p_enqueue' of 12 bytes": symbol("p_enqueue", size=12),
    "of 56 bytes at byte 4": symbol("p_enqueue", value=4, size=56),
    "function '' of": more_symbols(Named("", ".text", 0, 8, elf.FUNC)),
    "slot 0 jumps 5 slots": code(elf.insn(0x05, offset=5) + elf.EXIT),
    "slot 0 jumps -2 slots": code(elf.insn(0x15, offset=-2) + elf.EXIT),
    "slot 0 jumps 2147483647 slots": code(elf.insn(0x06, imm=0x7FFFFFFF) + elf.EXIT),
    "slot 0 jumps 1 slots": code(elf.insn(0x05, offset=1) + elf.ld_imm64() + elf.EXIT),
    "an address in a register": code(elf.insn(0x0D, dst=1) + elf.EXIT),
    "16-byte instruction at slot 1 is cut": code(elf.EXIT + elf.ld_imm64()[:8]),
    "16-byte instruction at slot 0 is cut short or damaged": code(elf.ld_imm64()[:8] + elf.EXIT),
    "loads an address that only a loader": code(elf.ld_imm64(src=1) + elf.EXIT),
    "calls a kernel function that it does not name": code(elf.insn(0x85, src=2, imm=9) + elf.EXIT),
    "byte 8 of section 1 is taken for a function": code(elf.insn(0x85, src=1) + elf.EXIT),
    "byte 24 of section 3 is taken": code(elf.insn(0x85, src=1, imm=2) + elf.EXIT, (0, "other", elf.R_CALL)),
    "the call of 'other' has a relocation of type 1": code(elf.CALL_SYMBOL + elf.EXIT, (0, "other", 1)),
    "the call of 'other' has a relocation of type 10": code(elf.insn(0x85, imm=1) + elf.EXIT, (0, "other", 10)),
    "type 10 against 'table', opcode 0x18": code(elf.ld_imm64() + elf.EXIT, (0, "table", 10)),
    "type 1 against 'table', opcode 0x95": code(elf.EXIT, (0, "table", 1)),
    "byte 8 of 'struct_ops/p_enqueue' has a relocation, but no": code(elf.ld_imm64() + elf.EXIT, (8, "table", 1)),
    "byte 1 of .maps is taken for a map": code(elf.ld_imm64(value=1) + elf.EXIT, (0, "table", 1)),
    "symbol 'far' lies in no section": lambda parts: (
        code(elf.ld_imm64() + elf.EXIT, (0, "far", 1))(parts),
        more_symbols(Named("far", 0xFFF1))(parts),
    ),
    "stranger() is defined in none of the sources": lambda parts: (
        code(elf.CALL_SYMBOL + elf.EXIT, (0, "stranger", elf.R_CALL))(parts),
        more_symbols(Named("stranger"))(parts),
    ),
}

DECLARATIONS = {
    "policy.enqueue holds 01": section(OPS, content=b"\1" + bytes(47)),
    "policy.init has a relocation of type 1": relocated(OPS, (8, "p_init", elf.R_LD_IMM64)),
    "byte 0 of section 5 is taken for a function": relocated(OPS, (0, "slice_us", elf.R_ABS64)),
    "has a relocation where it has no pointer": relocated(OPS, (16, "p_init", elf.R_ABS64)),
    "the name of 'policy' holds bytes": section(OPS, content=bytes(32) + b"\x1b]0;" + bytes(12)),
    "the license holds bytes": section("license", content=b"GPL\x07\0"),
    "variable 'count' overlaps another or leaves section '.bss'": section(".bss", size=4),
    "BTF puts 'count' into section '.bss', the symbols do not": symbol("count", section=".rodata"),
    "BTF puts 'table' into section '.maps', the symbols do not": symbol("table", value=8),
    "BTF describes variables in section '.gone'": btf(lambda b: b.datasec(".gone", 8, [(b.variable("x", 1), 0, 8)])),
    "section '.bss' is described twice": btf(lambda b: b.datasec(".bss", 8, [])),
    "'scx_bpf_now___sa' is declared twice": btf(
        lambda b: b.datasec(".kconfig", 0, [(b.function("scx_bpf_now___sa", {}), 0, 0)])
    ),
    "section '.ksyms' is described twice, or": btf(lambda b: b.datasec(".ksyms", 0, [])),
    "section '.kconfig' lists type 1, a INT": btf(lambda b: b.datasec(".kconfig", 0, [(1, 0, 0)])),
}

BTF = {
    "a .BTF section of 7 bytes": raw_btf(bytes(7)),
    "with magic 0x0": raw_btf(bytes(24)),
    "takes bytes 24 to 4294967319": raw_btf(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0xFFFFFFFF, 0, 1)),
    "takes bytes 4294967319 to": raw_btf(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0xFFFFFFFF, 1)),
    "must begin and end with a zero": raw_btf(EMPTY_BTF[:-1] + b"x"),
    "a header of 8 bytes": raw_btf(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 8, 0, 0, 0, 1) + b"\0"),
    "type 1 is cut short": raw_btf(types([0, 4 << 24 | 0xFFFF, 8])),
    "type 2 is cut short": raw_btf(types([0, 2 << 24, 0, 0])),
    "a type of kind 0": raw_btf(types([0, 0, 0])),
    "a type of kind 20": raw_btf(types([0, 20 << 24, 0])),
    "the name of a type lies at byte 99": raw_btf(types([99, 15 << 24, 0])),
}


def check(change, words):
    parts = Parts.sound()
    change(parts)
    told = read_or_refuse(parts.build())
    assert words in told


@pytest.mark.parametrize("words", FILES)
def test_a_file_that_contradicts_itself(words):
    check(FILES[words], words)


@pytest.mark.parametrize("words", FUNCTIONS)
def test_functions_and_instructions_that_make_no_sense(words):
    check(FUNCTIONS[words], words)


@pytest.mark.parametrize("words", DECLARATIONS)
def test_declarations_that_lie(words):
    check(DECLARATIONS[words], words)


@pytest.mark.parametrize("words", BTF)
def test_btf_that_contradicts_itself(words):
    check(BTF[words], words)


def test_two_sections_of_one_name_are_refused():
    whole = Parts.sound()
    whole.sections[".rodat_"] = Part(content=b"12345678")
    renamed = whole.build().replace(b".rodat_\0", b".rodata\0")
    assert "two sections are called '.rodata'" in read_or_refuse(renamed)


def with_map(define):
    """An object whose map is declared by what `define` adds to its BTF."""
    parts = Parts()
    parts.program("p_enqueue", ENQUEUE, elf.ld_imm64() + elf.EXIT)
    parts.relocations[ENQUEUE] = [(0, "table", elf.R_LD_IMM64)]
    parts.sections[".maps"] = Part(content=bytes(32))
    parts.symbols.append(Named("table", ".maps", 0, 32, elf.OBJECT))
    parts.btf.add(elf.INT, "u64", 8, (64,))
    parts.btf.datasec(".maps", 32, [(parts.btf.variable("table", define(parts.btf)), 0, 32)])
    return parts.build()


def test_second_map_by_an_addend_that_libbpf_ignores_is_refused():
    parts = Parts()
    parts.program("p_enqueue", ENQUEUE, elf.ld_imm64(value=32) + elf.EXIT)
    parts.relocations[ENQUEUE] = [(0, "first", elf.R_LD_IMM64)]
    parts.sections[".maps"] = Part(content=bytes(64))
    parts.symbols += [Named("first", ".maps", 0, 32, elf.OBJECT), Named("second", ".maps", 32, 32, elf.OBJECT)]
    parts.btf.add(elf.INT, "u64", 8, (64,))
    define = parts.btf.struct("", 32, [("type", elf._uint(parts.btf, 1), 0)])
    places = [(parts.btf.variable("first", define), 0, 32), (parts.btf.variable("second", define), 32, 32)]
    parts.btf.datasec(".maps", 64, places)
    assert "byte 32 of .maps is taken for a map" in read_or_refuse(parts.build())
    code(elf.ld_imm64() + elf.EXIT, (0, "second", elf.R_LD_IMM64))(parts)
    assert read_object(parts.build()).functions["p_enqueue"].instructions[0].ref.name == "second"


def one_member(name, build):
    return lambda b: b.struct("", 32, [("type", elf._uint(b, 1), 0), (name, build(b), 64)])


def ring(b: BtfParts, kind: int) -> int:
    """A type that refers to itself."""
    return b.add(kind, "loop" if kind == elf.TYPEDEF else "", len(b.types) + 1)


def nested_arrays(b: BtfParts, depth: int, length: int) -> int:
    element = 1
    for _level in range(depth):
        element = b.array(element, length)
    return element


def pointer(b: BtfParts, target: int) -> int:
    return b.add(elf.PTR, target=target)


@pytest.mark.parametrize(
    ("define", "words"),
    [
        (lambda b: ring(b, elf.TYPEDEF), "a chain of more than 32 types"),
        (lambda b: ring(b, elf.CONST), "a chain of more than 32 types"),
        (lambda b: 9999, "type 9999 is asked for"),
        (lambda b: 1, "declared by a INT"),
        (lambda b: b.struct("", 32, []), "has no type"),
        (lambda b: b.struct("", 32, [("max_entries", elf._uint(b, 1), 0)] * 33), "33 members, more than 32"),
        (one_member("key", lambda b: pointer(b, 0)), "a VOID, has no size"),
        (one_member("key", lambda b: 1), "table.key is a INT, not a PTR"),
        (one_member("key", lambda b: pointer(b, nested_arrays(b, 9, 0xFFFFFFFF))), "takes"),
        (one_member("key", lambda b: pointer(b, nested_arrays(b, 33, 1))), "more than 32 dimensions"),
        (one_member("key", lambda b: pointer(b, b.array(len(b.types) + 1, 2))), "more than 32 dimensions"),
        (one_member("type", lambda b: elf._uint(b, 2)), "declares type as 1 and as 2"),
        (one_member("surprise", lambda b: 1), "a member 'surprise' that libbpf does not know"),
        (one_member("values", lambda b: b.array(pointer(b, len(b.types) - 1), 0)), "nested"),
    ],
)
def test_map_declarations_that_lie(define, words):
    told = read_or_refuse(with_map(define))
    assert words in told or (words == "nested" and told)


def test_map_of_maps_of_maps_is_refused():
    def define(b):
        size = len(b.types)
        inner = b.struct("", 8, [("values", size + 3, 0)])
        b.add(elf.PTR, target=inner)
        array = b.array(inner + 1, 0)
        return b.struct("", 16, [("type", elf._uint(b, 13), 0), ("values", array, 64)])

    assert "table.inner" in read_or_refuse(with_map(define))


def test_static_map_is_refused():
    parts = Parts.sound()
    place = next(
        i for i, found in enumerate(parts.btf.types) if found[7] == elf.VAR and b_name(parts, found) == "table"
    )
    parts.btf.types[place] = parts.btf.types[place][:12] + struct.pack("<I", 0)
    assert "map 'table' is static" in read_or_refuse(parts.build())


def b_name(parts, found):
    (offset,) = struct.unpack_from("<I", found)
    return bytes(parts.btf.strings[offset:]).partition(b"\0")[0].decode()


NOTHING = elf.insn(0xB7) + elf.EXIT


def with_ext(build, code_bytes=NOTHING):
    """The sound object with a .BTF.ext section that `build` makes of its BTF."""
    parts = Parts.sound()
    code(code_bytes)(parts)
    content = build(parts.btf)
    parts.sections[".BTF.ext"] = Part(content=content)
    return parts.build()


def core(type_id, access, kind=0, place=0):
    return lambda b: elf.ext(
        core=elf.records(
            16, [(b.string(ENQUEUE), [(place, type_id if type_id else len(b.types), b.string(access), kind)])]
        )
    )


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda b: bytes(5), ".BTF.ext section of 5 bytes"),
        (lambda b: struct.pack("<HBBI", 0xEB9F, 1, 0, 4), "header of 4 bytes"),
        (lambda b: struct.pack("<HBBI", 0xEB9F, 1, 0, 1 << 31), "header of 2147483648 bytes"),
        (lambda b: struct.pack("<HBBIII", 0xEB9F, 1, 0, 16, 0, 0xFFFFFFFF), "takes bytes 16 to 4294967311"),
        (lambda b: elf.ext(functions=struct.pack("<I", 0)), "records of 0 bytes"),
        (lambda b: elf.ext(lines=struct.pack("<I", 12)), "records of 12 bytes"),
        (lambda b: elf.ext(lines=elf.records(16, [(1, [])], count=0xFFFFFFFF)), "4294967295 records of 16 bytes"),
        (lambda b: elf.ext(lines=elf.records(16, [(1, [])])), "0 records of 16 bytes"),
        (lambda b: elf.ext(lines=elf.records(0xFFFFFFF0, [(1, [])], count=1)), "1 records of 4294967280 bytes"),
        (lambda b: elf.ext(lines=struct.pack("<II", 16, 1)), "cut short at byte 4 of 8"),
        (
            lambda b: elf.ext(functions=elf.records(8, [(1, [(0, 1), (0, 1)])])),
            "or its byte 0",
        ),
        (lambda b: elf.ext(functions=elf.records(8, [(b.string(ENQUEUE), [(0, 1)])])), "a INT, as a function"),
        (lambda b: elf.ext(functions=elf.records(8, [(b.string(ENQUEUE), [(0, 9999)])])), "type 9999 is asked for"),
        (core(1, "0:0"), "member 0 of type 1, a INT"),
        (core(1, "0:99999999999"), "with the access string '0:99999999999'"),
        (core(1, ":".join("0" * 65)), "with the access string"),
        (core(1, "0:-1"), "with the access string '0:-1'"),
        (core(1, "0:²"), "with the access string"),
        (core(1, ""), "with the access string ''"),
        (core(1, "0", kind=13), "of kind 13"),
        (core(1, "0", kind=11), "a INT with 1 values"),
        (core(0, "7", kind=11), "constant [7]"),
        (core(1, "0", place=8 * 99), None),
    ],
)
def test_btf_ext_that_lies(build, words):
    told = read_or_refuse(with_ext(build))
    assert told == "" if words is None else words in told


def test_core_relocation_of_a_call_is_refused():
    told = read_or_refuse(with_ext(core(1, "0"), elf.insn(0x85, imm=1) + elf.EXIT))
    assert "has a CO-RE relocation where it cannot have one" in told


def test_source_text_is_made_printable():
    def lines(b):
        row = (0, b.string("evil\x1b[2J.c"), b.string("\t\x9bx = 1;\r\n" + "y" * 5000), 7 << 10 | 3)
        return elf.ext(lines=elf.records(16, [(b.string(ENQUEUE), [row])]))

    line = read_object(with_ext(lines)).functions["p_enqueue"].instructions[0].line
    assert line.file == "evil [2J.c"
    assert line.line == 7
    assert line.text.startswith("??x = 1;  yyy")
    assert len(line.text) <= 256


def test_section_names_are_only_names():
    parts = Parts.sound()
    parts.program("walk", "struct_ops/../../etc/passwd", elf.insn(0xB7) + elf.EXIT)
    image = read_object(parts.build())
    assert image.functions["walk"].section == "struct_ops/../../etc/passwd"
    assert image.functions["walk"].is_program


def test_code_in_a_section_called_rodata_is_code():
    parts = Parts.sound()
    parts.program("sly", ".rodata.x", elf.insn(0x85, imm=36) + elf.EXIT)
    sly = read_object(parts.build()).functions["sly"]
    assert (sly.is_program, sly.instructions[0].ref.name) == (True, "bpf_probe_write_user")


def test_static_functions_of_one_name_are_told_apart():
    parts = Parts.sound()
    parts.program("more", ".text2", elf.insn(0xB7) + elf.EXIT)
    parts.symbols[-1] = Named("other", ".text2", 0, 16, elf.FUNC, elf.LOCAL)
    image = read_object(parts.build())
    assert {"other", "other@.text2"} < set(image.functions)
    assert not image.functions["other@.text2"].is_program


def test_reference_inside_a_variable_names_it():
    parts = Parts.sound()
    parts.symbols.append(Named("", ".rodata", 0, 0, elf.SECTION, elf.LOCAL))
    code(elf.ld_imm64(value=12) + elf.ld_imm64(value=99) + elf.EXIT, (0, "", 1), (16, "", 1))(parts)
    first, second, _exit = read_object(parts.build()).functions["p_enqueue"].instructions
    assert (first.ref.kind, first.ref.symbol, first.ref.offset) == (Ref.VARIABLE, "hidden", 12)
    assert (second.ref.symbol, second.ref.offset) == ("", 99)


def memory_of(object_bytes):
    tracemalloc.start()
    try:
        return read_or_refuse(object_bytes), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_could_not_be_deployed_is_not_looked_at():
    assert "2097153 bytes; at most 2097152" in read_or_refuse(bytes((2 << 20) + 1))
    assert "bytes; at most 2097152" in read_or_refuse(with_arena(bytes((2 << 20) + 8) + b"\1"))
    assert "bytes; at most 2097152" in read_or_refuse(with_arena(bytes(32 << 20)))


def with_arena(content):
    parts = Parts.sound()
    added(".addr_space.1", content=content)(parts)
    return parts.build()


def test_the_zeros_of_an_arena_are_not_counted():
    assert not read_or_refuse(with_arena(bytes(20 << 20)))


def test_a_variable_that_another_source_overrides_has_no_name():
    """The linker moves the symbol of a weak one, and leaves the BTF: a tunable would be set where nothing reads it."""
    parts = Parts.sound()
    symbol("slice_us", value=8)(parts)
    assert list(read_object(parts.build()).variables) == ["hidden", "count"]


def test_declared_sizes_cost_no_memory():
    """Zero bytes that are not there, sections that share their bytes, names that share theirs."""
    parts = Parts.sound()
    parts.sections[".bss"].size = 1 << 60
    told, used = memory_of(parts.build())
    assert not told
    shared = Parts.sound()
    for number in range(300):
        shared.sections[f".data.{number}"] = Part(size=1 << 20, offset=0)
        shared.symbols.append(Named(f"v{number}", f".data.{number}", 0, 1 << 20, elf.OBJECT))
        variable = shared.btf.variable(f"v{number}", 1)
        shared.btf.datasec(f".data.{number}", 1 << 20, [(variable, 0, 1 << 20)])
    shared.sections[".fill"] = Part(content=bytes(1 << 20))
    told, more = memory_of(shared.build())
    assert "two sections share byte 0" in told
    assert used < 2 << 20
    assert more < 20 << 20


def test_large_types_asked_for_often_cost_no_time():
    """2000 relocations against a struct of 65535 members that take 64 steps each: linear, not the product."""
    parts = Parts.sound()
    code(elf.insn(0xB7) * 2000 + elf.EXIT)(parts)
    size = len(parts.btf.types)
    wide = parts.btf.add(elf.STRUCT, "wide", 8, (parts.btf.string("m"), size + 1, 0) * 0xFFFF, 0xFFFF)
    texts = [parts.btf.string(":".join(["0", *[str(60000 + n)] * 60])) for n in range(2000)]
    rows = [(8 * n, wide, text, 0) for n, text in enumerate(texts)]
    parts.sections[".BTF.ext"] = Part(content=elf.ext(core=elf.records(16, [(parts.btf.string(ENQUEUE), rows)])))
    image = read_object(parts.build())
    assert image.functions["p_enqueue"].instructions[5].ref.name == "wide" + ".m" * 60


def test_relocations_that_each_walk_long_chains_are_refused():
    parts = Parts.sound()
    code(elf.insn(0xB7) * 200 + elf.EXIT)(parts)
    first = len(parts.btf.types) + 1
    loop = parts.btf.struct("w", 8, [("m", first + 31, 0)])
    for target in range(first, first + 31):
        parts.btf.add(elf.CONST, target=target)
    rows = [(8 * n, loop, parts.btf.string(f"{n}" + ":0" * 60), 0) for n in range(200)]
    parts.sections[".BTF.ext"] = Part(content=elf.ext(core=elf.records(16, [(parts.btf.string(ENQUEUE), rows)])))
    assert "refer to each other so much" in read_or_refuse(parts.build())


def test_errors_that_are_kept_can_be_collected():
    """With memoryviews of the file this ended CPython 3.11 with a segmentation fault; see verifier.object.elf."""

    def refuse(change):
        parts = Parts.sound()
        change(parts)
        try:
            read_object(parts.build())
        except PolicyError as error:
            kept = error  # a cycle: the error, its traceback, this frame
            return kept.message
        return ""

    for _round in range(50):
        assert refuse(symbol("count", section=999))
        assert refuse(code(elf.EXIT + elf.ld_imm64()[:8]))
    gc.collect()


def test_hint_says_how_to_compile():
    with pytest.raises(PolicyError) as caught:
        read_object(b"")
    assert caught.value.hint == "compile it with: clang -target bpf -g -O2 -c"
