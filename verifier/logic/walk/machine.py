"""What single instructions do to a state: arithmetic, memory, relocated values, results of calls."""

from __future__ import annotations

from collections.abc import Mapping

from verifier.logic.walk import calls, marking
from verifier.logic.walk.code import Op, call_arity
from verifier.logic.walk.events import Event, Load, Site, Store, Walk, Walked, kept_at
from verifier.logic.walk.facts import Condition, Fact, Facts, Range, range_of, reach_of, terms_of
from verifier.logic.walk.state import State
from verifier.logic.walk.terms import MASK64, Term, TermKind, linear, low_half, pointer, signed
from verifier.object.image import BpfImage, MapInfo, Ref, Reference, Variable

_ADDRESSES = {
    Ref.MAP: TermKind.MAP,
    Ref.VARIABLE: TermKind.GLOBAL,
    Ref.FUNCTION: TermKind.FUNCTION,
    Ref.KFUNC: TermKind.FUNCTION,
    Ref.KSYM: TermKind.GLOBAL,
}
"""What the address that an ld_imm64 loads is the address of."""

_EXISTS_KINDS = frozenset({2, 8, 10, 12})
"""bpf_core_relo_kind: FIELD_EXISTS, TYPE_EXISTS, ENUMVAL_EXISTS, TYPE_MATCHES."""

_ENUM_VALUE = 11
_LIKELY_BYTES = 16
"""A call that is not known may write so much through a pointer to the stack."""

_TO_KERNEL = 1
"""addr_space_cast from address space 1 to 0 (Documentation/bpf/standardization/instruction-set.rst, bpf_arena.c)."""
_KCONFIG, _MOST_HZ = ".kconfig", 1000
"""Where externs of the kernel's configuration stand, and the most ticks in a second (kernel/Kconfig.hz)."""
_FIELD_OFFSET = 0
_MOST_PRINTED = 12
"""MAX_BPRINTF_VARARGS of kernel/bpf/helpers.c."""

_MOST_VALUES = 32
"""So many of the values that are written to one place are remembered."""

_MODE = 0xE0
_SIGN_EXTENDING = 0x80
_BYTE_SWAPS = {0xD4: "le", 0xDC: "be", 0xD7: "bswap"}


class Machine:
    """Executes instructions that neither branch nor call functions of the object."""

    def __init__(self, image: BpfImage, features: frozenset[str], enums: Mapping[str, int], walk: Walk) -> None:
        self.image = image
        self.features = features
        self.enums = enums
        self.walk = walk
        self.terms = walk.terms
        self.member = ""
        self.entry: Walked
        self.watched: frozenset[int] = frozenset()
        self.recorded: frozenset[str] = frozenset()
        """Task storages in which every task has a record once init_task let it in."""
        self._undecided: set[Condition] = set()
        self._stored: set[tuple[object, ...]] = set()
        self._constants = sorted(
            (variable for variable in image.variables.values() if variable.section.startswith(".rodata")),
            key=lambda variable: (variable.section, variable.offset),
        )

    # --- values

    def _immediate(self, op: Op) -> Term:
        """Return the second operand that an instruction carries itself, relocated."""
        ref = op.raw.ref
        if ref is None or op.kind == "call":
            return self.terms.const(op.raw.imm)
        return self._relocated(ref, op.raw.imm)

    def _relocated(self, ref: Reference, imm: int) -> Term:
        short = ref.name.rpartition(".")[2]
        if ref.kind is Ref.ENUM and ref.core_kind == _ENUM_VALUE:
            return self.terms.const(self.enums.get(short, imm), short)
        if ref.core_kind in _EXISTS_KINDS:
            return self.terms.const(int(self._exists(ref, short, imm)))
        if ref.kind is Ref.FIELD and ref.core_kind == _FIELD_OFFSET:
            return self.terms.const(imm, "." + ref.name)
        return self.terms.const(imm)

    def _exists(self, ref: Reference, short: str, imm: int) -> bool:
        """Whether the target has a type, field or enumerator; what the features do not list is as it was compiled."""
        if not self.features:
            return bool(imm)
        if ref.kind is Ref.ENUM and short.startswith("SCX_"):
            return short in self.features
        if ref.kind is Ref.FIELD and ref.name.startswith("sched_ext_ops."):
            return ref.name in self.features
        if ref.kind is Ref.TYPE and short.startswith("scx_"):
            return short.partition("___")[0] in self.features
        return bool(imm)

    def has_kfunc(self, name: str) -> bool:
        """Whether the target has a kfunc; only those of sched_ext are known, others are assumed to be there."""
        if not self.features or not name.startswith(("scx_bpf_", "__scx_bpf_")):
            return True
        return name in self.features

    def _imm64(self, state: State, op: Op) -> bool:
        state.regs[op.dst] = self._wide(op)
        state.index += 1
        return True

    def _wide(self, op: Op) -> Term:
        ref = op.raw.ref
        if ref is None:
            return self.terms.const(op.raw.imm)
        if ref.kind is Ref.KFUNC and not self.has_kfunc(ref.name):
            return self.terms.const(0)
        kind = _ADDRESSES.get(ref.kind)
        if kind is None:
            return self._relocated(ref, op.raw.imm)
        place = self.terms.make(kind, f"{ref.name} {ref.symbol}" if ref.name == _KCONFIG else ref.name)
        return self.terms.alu("add", place, self.terms.const(ref.offset)) if ref.kind is Ref.VARIABLE else place

    def _alu(self, state: State, op: Op) -> bool:
        state.index += 1
        regs, dst = state.regs, op.dst
        if dst == 0:
            state.returned = op.line
        right = regs[op.src] if op.from_register else self._immediate(op)
        if op.name == "mov":
            regs[dst] = self._moved(op, right)
        elif op.name == "neg":
            regs[dst] = self.terms.alu("sub", self.terms.const(0), regs[dst], op.bits)
        elif op.name == "end":
            swap = _BYTE_SWAPS.get(op.raw.opcode, op.name)
            regs[dst] = self.terms.make(TermKind.OP, swap, regs[dst], self.terms.const(op.raw.imm))
        else:
            name = "s" + op.name if op.name in ("div", "mod") and op.raw.offset == 1 else op.name
            regs[dst] = self.terms.alu(name, regs[dst], right, op.bits)
        return True

    def _moved(self, op: Op, value: Term) -> Term:
        if op.from_register and op.raw.offset in (8, 16, 32):  # movsx, cpu v4
            extended = self.terms.extend(value, op.raw.offset)
            return extended if op.bits == 64 else self.terms.zext(extended)
        if op.from_register and op.raw.offset == 1 and op.bits == 64:  # into an arena, which is what it then points at
            return self.terms.make(TermKind.PURE, calls.ARENA, (value,)) if op.raw.imm == _TO_KERNEL else value
        return value if op.bits == 64 else self.terms.zext(value)

    # --- memory

    def _address(self, state: State, op: Op, register: int) -> Term:
        ref = op.raw.ref
        label = "." + ref.name if ref is not None and ref.kind is Ref.FIELD else ""
        offset = self.terms.const(op.raw.offset, label)
        return self.terms.alu("add", state.regs[register], offset)

    def _load(self, state: State, op: Op) -> bool:
        address = self._address(state, op, op.src)
        site = Site(state.code.name, state.index)
        state.index += 1
        value = self._loaded(state, address, op.size, site)
        sign_extends = op.raw.opcode & _MODE == _SIGN_EXTENDING  # cpu v4
        state.regs[op.dst] = self.terms.extend(value, 8 * op.size) if sign_extends else value
        return True

    def _loaded(self, state: State, address: Term, size: int, site: Site) -> Term:
        if address.kind is TermKind.STACK:
            stored = state.read_stack(address.parts[0], address.parts[1], size, self.terms)
            return stored or self._unknown_in_stack(state, address, size)
        base, offset = pointer(address)
        if base.kind is TermKind.CONTEXT:
            return self._argument(offset // 8)
        if base.kind is TermKind.GLOBAL and base.name == f"{_KCONFIG} CONFIG_HZ":
            return self.terms.const(_MOST_HZ, "CONFIG_HZ")
        if base.kind is TermKind.CALL and base.name == "bpf_iter_num_next" and base.parts[2]:
            return self._index(base, site)
        if base.kind is TermKind.GLOBAL and base.name.startswith(".rodata"):
            constant = (
                self._constant(base.name, offset, size) if address is base or len(linear(address)[1]) == 1 else None
            )
            if constant is not None:
                return constant
        return self._loaded_from_memory(state, address, base, offset, size, site)

    def _unknown_in_stack(self, state: State, address: Term, size: int) -> Term:
        term = self.terms.make(TermKind.UNKNOWN, "stack", address, size)
        state.remake(term, self.terms)
        return term

    def _loaded_from_memory(self, state: State, address: Term, base: Term, offset: int, size: int, site: Site) -> Term:
        if address.kind is TermKind.ADDRESS:
            self.walk.fields.add(address.name)
            return self.terms.make(TermKind.FIELD, address.parts[0], address.name, size)
        if base.kind in (TermKind.ARGUMENT, TermKind.FIELD, TermKind.ADDRESS):
            self.walk.fields.add(f"{base.name}.+{offset}")
            self.walk.loads.add(Load(address, size, self.member, state.code.ops[site.place].line))
            return self.terms.make(TermKind.FIELD, base, f"+{offset}", size)
        self.walk.loads.add(Load(address, size, self.member, state.code.ops[site.place].line))
        term = self.terms.make(TermKind.LOAD, site, address, size)
        state.remake(term, self.terms)
        return term

    def _argument(self, index: int) -> Term:
        names = calls.CALLBACK_ARGUMENTS.get(self.member, ())
        name = names[index] if 0 <= index < len(names) else f"argument {index}"
        return self.terms.make(TermKind.ARGUMENT, index, name)

    def _index(self, base: Term, site: Site) -> Term:
        """The counter of bpf_for(i, start, end)."""
        iterator = base.parts[2][0]
        if iterator.kind is not TermKind.ITERATOR or len(iterator.parts[2]) < 2:
            return self.terms.make(TermKind.UNKNOWN, "counter", site)
        start, end = iterator.parts[2][:2]
        return self.terms.make(TermKind.INDEX, base.parts[1], low_half(start), low_half(end))

    def _constant(self, section: str, offset: int, size: int) -> Term | None:
        """Return what a constant or a tunable holds at first, under its name."""
        variable = self._variable(section, offset, size)
        if variable is None:
            return None
        if variable.name.startswith("__SCX_") and variable.volatile:
            return self._enumerator(variable.name[2:])
        start = offset - variable.offset
        content = variable.content[start : start + size] if variable.content else bytes(size)
        return self.terms.const(int.from_bytes(content, "little"), variable.name if variable.volatile else "")

    def _enumerator(self, name: str) -> Term:
        """Return a constant that the loader fills in from the kernel's BTF, as scx's own headers have it."""
        known = self.enums.get(name)
        return self.terms.make(TermKind.UNKNOWN, name) if known is None else self.terms.const(known, name)

    def _variable(self, section: str, offset: int, size: int) -> Variable | None:
        for variable in self._constants:
            if variable.section == section and variable.offset <= offset <= variable.offset + variable.size - size:
                return variable
        return None

    def _store(self, state: State, op: Op) -> bool:
        address = self._address(state, op, op.dst)
        value = state.regs[op.src] if op.from_register else self.terms.const(op.raw.imm)
        site = Site(state.code.name, state.index)
        state.index += 1
        if address.kind is TermKind.STACK:
            state.write_stack(address.parts[0], address.parts[1], op.size, self.terms.narrow(value, op.size))
            return True
        base, _offset = pointer(address)
        self._written(state, address, op.size, value)
        if address.kind is TermKind.ADDRESS or base.kind in (TermKind.ARGUMENT, TermKind.FIELD):
            owner = address.parts[0] if address.kind is TermKind.ADDRESS else base
            state.facts = _without_fields_of(state.facts, owner)
            self._note_store(state, op, site, address, value)
        else:
            self._keep(address, value)
            state.marks = marking.after_store(self, state, address, value)
            if marking.is_timelike(value):
                self._note_store(state, op, site, address, value)
        return True

    def _keep(self, address: Term, value: Term) -> None:
        """Remember what is written to a place that outlives the callback."""
        place = kept_at(address)
        if place is not None and not value.is_const:
            values = self.walk.kept.setdefault(place, set())
            if len(values) < _MOST_VALUES:
                values.add(value)

    def _written(self, state: State, address: Term, size: int, value: Term | None) -> None:
        """Note a store that may be one to a variable."""
        if value is None:
            self.walk.stores.add(Store(address, size, reach=reach_of(state.facts, address)))
        elif any(part.kind in (TermKind.GLOBAL, TermKind.UNKNOWN) for part, _factor in linear(address)[1]):
            known = range_of(state.facts, 8 * size if size in (4, 8) else 64, self.terms.narrow(value, size))
            reach = reach_of(state.facts, address)
            self.walk.stores.add(Store(address, size, value, known.low, known.high, reach))

    def _written_by(self, name: str, arguments: tuple[Term, ...]) -> None:
        """Note the variables that a call is given the address of and may write to."""
        if name in calls.ONLY_READS:
            return
        for argument in arguments:
            if any(part.kind in (TermKind.GLOBAL, TermKind.UNKNOWN) for part, _factor in linear(argument)[1]):
                copies = name in calls.WRITES_FIRST_ARGUMENT and len(arguments) > 1 and arguments[1].is_const
                self.walk.stores.add(Store(argument, arguments[1].value if copies else 0))

    def _note_store(self, state: State, op: Op, site: Site, address: Term, value: Term) -> None:
        key = (self.member, site, address, value)
        if key in self._stored:
            return
        self._stored.add(key)
        self.walk.events.append(
            Event(
                "store",
                "store",
                self.member,
                site,
                op.line,
                (address, value),
                None,
                state.facts,
                state.marks,
                state.trail,
            )
        )

    def _atomic(self, state: State, op: Op) -> bool:
        site = Site(state.code.name, state.index)
        self._written(state, self._address(state, op, op.dst), op.size, None)
        state.index += 1
        fetched = self.terms.make(TermKind.UNKNOWN, "atomic", site)
        if op.raw.imm == 0xF1:
            state.regs[0] = fetched
        elif op.raw.imm & 1:
            state.regs[op.src] = fetched
        state.remake(fetched, self.terms)
        return True

    # --- calls

    @staticmethod
    def _arity_at(op: Op, arity: Mapping[str, int]) -> int:
        return call_arity(op, arity)

    def _result(self, state: State, name: str, arguments: tuple[Term, ...], site: Site) -> Term:
        """Return what a helper or kfunc returns, and do what it does to the stack."""
        if name in calls.ALIASES and arguments:
            return arguments[0]
        if name in calls.PURE:
            return self.terms.make(TermKind.PURE, name, arguments)
        if name == "bpf_probe_read_kernel" and self._copy_field(state, arguments):
            return self.terms.const(0)
        self._write_stack_arguments(state, name, arguments, site)
        first_round = False
        if name.startswith("bpf_iter_") and arguments and arguments[0].kind is TermKind.STACK:
            first_round = _is_first_round(self._iterator_at(state, arguments[0]))
            arguments = self._iterate(state, name, arguments, site)
            if name.endswith("_next") and arguments[0].kind is TermKind.ITERATOR:
                site = arguments[0].parts[1]  # clang asks for the first element and for the others in two places
        term = self.terms.make(TermKind.CALL, name, site, arguments)
        state.remake(term, self.terms)
        never_null = name == "bpf_map_lookup_elem" and self._is_always_found(state, arguments)
        never_null = never_null or (name == "bpf_task_storage_get" and self._has_record(arguments))
        if never_null or (first_round and name == "bpf_iter_num_next"):
            state.facts = Facts({**state.facts, (64, term): Range(1, MASK64, -(1 << 63), (1 << 63) - 1)})
        return term

    def _printed(self, state: State, name: str, arguments: tuple[Term, ...]) -> tuple[Term, ...]:
        """Return the values that a kfunc with a format is given in the stack."""
        values, size = arguments[-2:] if name in calls.PRINTS and len(arguments) > 2 else (self.terms.const(0),) * 2
        if values.kind is not TermKind.STACK:
            return ()
        depth, offset = values.parts
        count = min(size.value // 8, _MOST_PRINTED) if size.is_const else 0
        unknown = self.terms.make(TermKind.UNKNOWN, "printed")
        return tuple(state.read_stack(depth, offset + 8 * i, 8, self.terms) or unknown for i in range(count))

    def _iterate(self, state: State, name: str, arguments: tuple[Term, ...], site: Site) -> tuple[Term, ...]:
        """Keep an iterator's arguments in its stack slot; its next() then knows what it goes through."""
        depth, offset = arguments[0].parts
        if name.endswith("_new"):
            iterator = self.terms.make(TermKind.ITERATOR, name.removesuffix("_new"), site, arguments[1:], True)
            state.write_stack(depth, offset, 8, iterator)
            return arguments
        held = self._iterator_at(state, arguments[0])
        if held is not None and held.parts[3]:
            held = self.terms.make(TermKind.ITERATOR, *held.parts[:3], False)
            state.write_stack(depth, offset, 8, held)
        return (held or arguments[0], *arguments[1:])

    def _iterator_at(self, state: State, place: Term) -> Term | None:
        held = state.read_stack(place.parts[0], place.parts[1], 8, self.terms)
        return held if held is not None and held.kind is TermKind.ITERATOR else None

    def _copy_field(self, state: State, arguments: tuple[Term, ...]) -> bool:
        """BPF_CORE_READ(): bpf_probe_read_kernel(buffer, size, address of a field)."""
        if len(arguments) < 3 or arguments[0].kind is not TermKind.STACK or not arguments[1].is_const:
            return False
        size, source = arguments[1].value, arguments[2]
        if source.kind is not TermKind.ADDRESS or size not in (1, 2, 4, 8):
            return False
        self.walk.fields.add(source.name)
        value = self.terms.make(TermKind.FIELD, source.parts[0], source.name, size)
        state.write_stack(arguments[0].parts[0], arguments[0].parts[1], size, value)
        return True

    def _write_stack_arguments(self, state: State, name: str, arguments: tuple[Term, ...], site: Site) -> None:
        if name in calls.WRITES_FIRST_ARGUMENT and arguments and arguments[0].kind is TermKind.STACK:
            size = arguments[1].value if len(arguments) > 1 and arguments[1].is_const else 512
            state.forget_stack(arguments[0].parts[0], arguments[0].parts[1], min(size, 512))
        elif name in calls.WRITES_SECOND_ARGUMENT and len(arguments) > 1 and arguments[1].kind is TermKind.STACK:
            depth, offset = arguments[1].parts
            info = self._map_of(arguments[0])
            size = info.value_size if info is not None else 8
            state.forget_stack(depth, offset, size)
            for start in range(0, min(size, 64), 8):
                word = self.terms.make(TermKind.CALL, "an element", (site, start), arguments[:1])
                state.remake(word, self.terms)
                state.write_stack(depth, offset + start, min(8, size - start), word)
        elif name not in calls.ONLY_READS and not name.startswith("bpf_iter_"):
            for argument in arguments:
                if argument.kind is TermKind.STACK:
                    state.forget_stack(argument.parts[0], argument.parts[1], _LIKELY_BYTES)

    def _map_of(self, term: Term) -> MapInfo | None:
        return self.image.maps.get(term.name) if term.kind is TermKind.MAP else None

    def _has_record(self, arguments: tuple[Term, ...]) -> bool:
        """Whether a task certainly has a record: one that the kernel scheduled, after init_task took it."""
        if len(arguments) < 2 or self.member not in calls.SCHEDULED:
            return False
        info, task = self._map_of(arguments[0]), arguments[1]
        is_task = task.kind is TermKind.ARGUMENT or (
            task.kind is TermKind.CALL and task.name == "bpf_iter_scx_dsq_next"
        )
        return info is not None and info.name in self.recorded and is_task

    def _is_always_found(self, state: State, arguments: tuple[Term, ...]) -> bool:
        """Whether the index of an array lookup is certainly in range."""
        info = self._map_of(arguments[0]) if arguments else None
        if info is None or info.type not in calls.ALWAYS_FOUND or arguments[1].kind is not TermKind.STACK:
            return False
        key = state.read_stack(arguments[1].parts[0], arguments[1].parts[1], 4, self.terms)
        return key is not None and range_of(state.facts, 32, low_half(key)).high < info.max_entries


def _is_first_round(iterator: Term | None) -> bool:
    """Whether an iterator was not asked yet and goes through at least one number."""
    if iterator is None:
        return False
    _name, _site, bounds, fresh = iterator.parts
    return bool(fresh and len(bounds) > 1 and bounds[0].is_const and bounds[1].is_const
                and signed(bounds[0].value, 32) < signed(bounds[1].value, 32))  # fmt: skip


def _without_fields_of(facts: Facts, base: Term) -> Facts:
    """Return the facts that do not depend on fields of a struct that was written to."""

    def stale(key: Fact) -> bool:
        return any(term.kind is TermKind.FIELD and term.parts[0] is base for term in terms_of(key))

    return Facts((key, value) for key, value in facts.items() if not stale(key))
