"""Rule 27 on reading: which memory a policy may look at, and what it may print of it.

Of kernel structs only the fields that scheduling is about, by the names that CO-RE relocations give them: an offset
without a name may be any field. bpf_probe_read_kernel() is what BPF_CORE_READ() is made of, and reads wherever its
address leads: it is accepted for one named field of an object that the kernel handed out. User memory is read by
identity.bpf.h alone, which keeps a hash of the arguments and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping

from schedagent.core.policies.policy import Standing
from schedagent.core.verification import Severity
from verifier.logic.rules.allowed import reached
from verifier.logic.rules.bounds import Bounds
from verifier.logic.rules.subject import Subject
from verifier.logic.walk import calls
from verifier.logic.walk.calls import names
from verifier.logic.walk.events import Event, Load
from verifier.logic.walk.terms import Term, TermKind, linear, signed
from verifier.object.image import BpfImage, Instruction, Ref

READER = "identify_exec"
"""The program of identity.bpf.h that reads the arguments of a task, when it starts a program."""

_READABLE: Mapping[str, frozenset[str]] = {
    "task_struct": names(
        "comm pid tgid flags static_prio normal_prio prio rt_priority policy nr_cpus_allowed cpus_ptr cpus_mask "
        "migration_disabled __state exit_state exit_code on_rq on_cpu wake_cpu recent_used_cpu in_iowait start_time "
        "start_boottime nvcsw nivcsw utime stime mm group_leader real_parent parent cgroups cred real_cred nsproxy "
        "scx.weight scx.slice scx.dsq_vtime scx.flags scx.dsq_flags scx.disallow scx.sticky_cpu scx.holding_cpu "
        "scx.selected_cpu scx.tid scx.dsq scx.ddsp_dsq_id scx.ddsp_enq_flags scx.runnable_at scx.core_sched_at "
        "se.sum_exec_runtime se.exec_start se.vruntime se.load.weight se.avg.util_avg thread_info.cpu "
        "thread_info.flags thread_info.preempt_count"
    ),
    "cred": names("uid uid.val gid gid.val euid euid.val egid egid.val"),
    "css_set": names("dfl_cgrp"),
    "cgroup": names("kn level self.id ancestors"),
    "kernfs_node": names("id name parent __parent"),
    "nsproxy": names("pid_ns_for_children"),
    "pid_namespace": names("ns.inum level"),
    "mm_struct": names("arg_start arg_end"),
    "rq": names("cpu curr nr_running clock clock_task scx.nr_running scx.flags"),
    "cpumask": names("bits"),
    "scx_dispatch_q": names("id nr"),
}
"""struct -> fields. Not a task's memory, files, signals, credentials beyond its ids, registers or stack."""

_STRUCTS = names(
    "scx_exit_info scx_init_task_args scx_exit_task_args scx_cgroup_init_args scx_cpu_acquire_args "
    "scx_cpu_release_args scx_dump_ctx scx_event_stats bpf_cpumask"
)
"""What may be read as a whole: arguments of callbacks."""

_ARGUMENTS = re.compile(r"scx_bpf_\w+_args")
"""The structs that kfuncs of sched_ext take their arguments in: a policy makes them itself."""

_BESIDES = names(
    "task_struct cgroup cgroup_root cgroup_subsys cgroup_subsys_state percpu_ref percpu_ref_data kernfs_node css_set "
    "task_group pid upid pid_namespace signal_struct nsproxy rq cfs_rq sched_entity sched_avg sched_ext_entity "
    "sched_class sched_domain psi_group_cpu kernel_cpustat kernel_stat vm_event_state sugov_cpu cpufreq_policy "
    "atomic_t pcpu_hot mempolicy class_rcu_t cpuset sched_statistics load_weight cpumask scx_dispatch_q "
    "bpf_perf_event_value"
)
"""Structs of which schedulers of the field read more: rule 32 has what they read as an input."""

_PRIVATE = names(
    "stack stack_canary thread files fs mm active_mm sighand pending blocked real_blocked saved_sigmask sas_ss_sp "
    "audit_context seccomp security journal_info bio_list io_context ptrace_message last_siginfo io_uring cred "
    "ptracer_cred real_cred"
)
"""Fields of a task that are nobody's business, whoever asks."""

_POINTERS = names(
    "task_struct.mm task_struct.group_leader task_struct.real_parent task_struct.parent task_struct.cgroups "
    "task_struct.cred task_struct.real_cred task_struct.nsproxy css_set.dfl_cgrp cgroup.kn kernfs_node.parent "
    "kernfs_node.__parent nsproxy.pid_ns_for_children rq.curr task_struct.scx.dsq task_struct.cpus_ptr"
)
"""Fields that lead to another object; the others are numbers, which may be an address of the policy's choice."""

_POINTERS_BESIDES = names(
    "task_struct.thread_pid task_struct.signal task_struct.sched_task_group task_struct.last_wakee "
    "task_struct.mempolicy task_struct.sched_class signal_struct.pids pid.numbers upid.ns task_group.css "
    "cgroup_subsys_state.cgroup cgroup_subsys_state.parent cgroup.root cgroup.dom_cgrp rq.sd sched_domain.parent"
)
"""Those that schedulers of the field follow, too."""

_TEXTS = names("scx_exit_info.reason scx_exit_info.msg scx_exit_info.dump kernfs_node.name")
"""Fields that point at a text which may be copied as a whole."""

_EXTENTS: Mapping[str, int] = {"task_struct.comm": 16, "task_struct.cpus_mask": 1024, "cpumask.bits": 1024}
_WORD_BYTES = 8

_HANDED_OUT = names(
    "bpf_get_current_task_btf bpf_task_from_pid bpf_task_from_vpid bpf_task_acquire bpf_iter_scx_dsq_next "
    "scx_bpf_task_cgroup scx_bpf_cpu_curr scx_bpf_cpu_rq scx_bpf_locked_rq scx_bpf_tid_to_task scx_bpf_dsq_peek "
    "bpf_cgroup_from_id bpf_cgroup_ancestor bpf_cgroup_acquire bpf_kptr_xchg scx_bpf_get_idle_cpumask "
    "scx_bpf_get_idle_smtmask scx_bpf_get_online_cpumask scx_bpf_get_possible_cpumask"
)
"""Calls that return an object of the kernel."""

_CONVERSION = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?(?:hh|h|ll|l|z)?([diuxXosc%])")


_OWN = names(
    "bpf_map_lookup_elem bpf_map_lookup_percpu_elem bpf_task_storage_get bpf_cgrp_storage_get bpf_obj_new "
    "bpf_per_cpu_ptr bpf_this_cpu_ptr bpf_rbtree_first bpf_rbtree_remove bpf_list_pop_front bpf_list_pop_back "
    "bpf_iter_num_next"
)
"""Calls that return the policy's own memory."""


def reader(image: BpfImage) -> str:
    """Return a digest of the program that reads arguments of tasks, with all that it calls; empty if there is none.

    Its code is compared with that of our own header: whatever else reads user memory may keep what it reads.
    """
    functions = [image.functions[name] for name in sorted(image.reached_from(READER))]
    parts = [[function.section, *map(_essence, function.instructions)] for function in functions]
    return "" if not parts else hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _essence(instruction: Instruction) -> list[object]:
    """What an instruction does, whatever the kernel it is compiled for."""
    ref = instruction.ref
    rest = [instruction.offset, instruction.imm] if ref is None else [ref.kind, ref.name, ref.core_kind]
    return [instruction.opcode, instruction.dst, instruction.src, *rest]


def reads_user_memory(image: BpfImage) -> bool:
    """Whether any function of an object does."""
    refs = (each.ref for function in image.functions.values() for each in function.instructions)
    return any(ref is not None and ref.kind is Ref.HELPER and ref.name == "bpf_probe_read_user" for ref in refs)


def check(subject: Subject, bounds: Bounds, *, accepted_reader: Callable[[], str]) -> None:
    """Report what is read, or printed, that is nobody's business.

    Args:
        accepted_reader: returns what `reader` says of the one program that may read user memory; empty if none may.
    """
    if subject.standing is Standing.BUNDLED:
        return
    _check_fields(subject)
    for load in subject.walk.loads:
        _check_load(subject, load)
    for event in subject.events("bpf_probe_read_kernel"):
        _check_copy(subject, bounds, event)
    for event in subject.events("bpf_probe_read_kernel_str"):
        _check_text(subject, event)
    _check_user_memory(subject, accepted_reader)
    for event in subject.events(*calls.PRINTS):
        _check_printed(subject, bounds, event)


def is_readable(field: str) -> bool:
    """Whether a policy may read a field, such as "task_struct.scx.weight"."""
    struct, _dot, path = re.sub(r"\[\d+\]", "", field).partition(".")
    return struct in _STRUCTS or _ARGUMENTS.fullmatch(struct) is not None or path in _READABLE.get(struct, ())


def _is_besides(field: str) -> bool:
    """Whether schedulers of the field may read a field, too."""
    struct, _dot, path = field.partition(".")
    return struct in _BESIDES and re.split(r"[.\[]", path)[0] not in _PRIVATE


def _check_fields(subject: Subject) -> None:
    for name in reached(subject):
        for instruction in subject.image.functions[name].instructions:
            ref = instruction.ref
            if ref is not None and ref.kind is Ref.FIELD and ref.core_kind == 0 and not is_readable(ref.name):
                report = subject.unusual if _is_besides(ref.name) else subject.forbidden
                report(27, name, instruction.line, f"{ref.name} is no field that a scheduler needs")


def _check_load(subject: Subject, load: Load) -> None:
    constant, addends = linear(load.address)
    bases = [base for atom, factor in addends if factor == 1 for base in subject.walk.may_be(atom)]
    if any(_is_own(base) for base in bases):
        return  # the rest is an index: there is no sum of two addresses
    for base in bases:
        if base.kind is TermKind.ADDRESS:
            wrong = not 0 <= signed(constant) <= _extent(base) - load.size
        else:
            wrong = base.kind in (TermKind.ARGUMENT, TermKind.FIELD, TermKind.LOAD) or (
                base.kind in (TermKind.CALL, TermKind.PURE) and base.name in _HANDED_OUT
            )
        if wrong:
            text = f"reads {load.size} bytes at offset {signed(constant)}, which names no field of a kernel struct"
            report = subject.unusual if _may_be_own(subject, base) else subject.forbidden
            report(27, load.member, load.line, text)


def _may_be_own(subject: Subject, base: Term) -> bool:
    """Whether a pointer out of a map may lead to an object of the policy's own, as bpf_obj_new() makes them."""
    return base.name == "bpf_kptr_xchg" and any(True for _made in subject.events("bpf_obj_new", "bpf_percpu_obj_new"))


def _extent(address: Term) -> int:
    """How many bytes from the address of a field belong to it."""
    return _EXTENTS.get(re.sub(r"\[\d+\]", "", address.name), _WORD_BYTES)


def _is_own(term: Term) -> bool:
    """Whether an address lies in the policy's own memory."""
    base = linear(term)[1][0][0] if linear(term)[1] else term
    return base.kind in (TermKind.STACK, TermKind.GLOBAL) or (base.kind is TermKind.CALL and base.name in _OWN)


def _is_read(subject: Subject, field: str) -> bool:
    return is_readable(field) or (subject.standing is Standing.FOREIGN and _is_besides(field))


def _is_object(term: Term, standing: Standing = Standing.DERIVED) -> bool:
    """Whether a pointer was handed out by the kernel, or leads from such an object to another one."""
    if term.kind in (TermKind.CALL, TermKind.PURE):
        return term.name in _HANDED_OUT
    if term.kind is TermKind.FIELD:
        name = re.sub(r"\[\d+\]", "", term.name)
        followed = name in _POINTERS or (standing is Standing.FOREIGN and name in _POINTERS_BESIDES)
        return followed and _is_object(term.parts[0], standing)
    return term.kind is TermKind.ARGUMENT


def _check_copy(subject: Subject, bounds: Bounds, event: Event) -> None:
    """bpf_probe_read_kernel(to, size, address)."""
    size = bounds.of(event.arguments[1], event.facts)[1]
    for source in subject.walk.may_be(event.arguments[2]):
        named = source.kind is TermKind.ADDRESS and _is_read(subject, source.name) and size <= _extent(source)
        if not (named and _is_object(source.parts[0], subject.standing)) and not _is_own(source):
            subject.error(27, event, f"{event.raw}() reads at an address that is no field of a kernel object")


def _check_text(subject: Subject, event: Event) -> None:
    """bpf_probe_read_kernel_str(to, size, address), which ends with the text."""
    for source in subject.walk.may_be(event.arguments[2]):
        named = source.kind is TermKind.ADDRESS and source.name == "task_struct.comm" and _is_object(source.parts[0])
        text = source.kind is TermKind.FIELD and source.name in _TEXTS and _is_object(source.parts[0])
        if not named and not text and not _is_own(source):
            subject.error(27, event, f"{event.raw}() reads a text that is neither a name nor why the policy ended")


# --- user memory


def _check_user_memory(subject: Subject, accepted_reader: Callable[[], str]) -> None:
    """Only the program of identity.bpf.h reads arguments, and only it looks at the map that it reads them into."""
    if not reads_user_memory(subject.image):
        return
    ours = reader(subject.image) == accepted_reader() != ""
    allowed = subject.image.reached_from(READER) if ours else frozenset()
    for function in subject.image.functions.values():
        for instruction in function.instructions:
            ref = instruction.ref
            if ref is not None and ref.name == "bpf_probe_read_user" and function.name not in allowed:
                text = "bpf_probe_read_user() reads user memory; only identity.bpf.h may, to hash arguments"
                subject.report(27, Severity.ERROR, function.name, instruction.line, text)
    kept = {part.name for event in subject.events("bpf_probe_read_user") for part in _inside(event.arguments[0])
            if part.kind is TermKind.MAP}  # fmt: skip
    for function in subject.image.functions.values():
        for instruction in function.instructions if function.name not in allowed else ():
            ref = instruction.ref
            if ref is not None and ref.kind is Ref.MAP and ref.name in kept:
                text = f"{ref.name} holds arguments of tasks; only {READER} may look at them"
                subject.report(27, Severity.ERROR, function.name, instruction.line, text)


def _inside(term: Term) -> Iterator[Term]:
    """Yield the terms of an address, the arguments of the call that returned it included."""
    waiting = [term]
    while waiting:
        part = waiting.pop()
        yield part
        if part.kind is TermKind.CALL:
            waiting += part.parts[2]
        elif part.kind is TermKind.LINEAR:
            waiting += [atom for atom, _factor in part.parts[1]]


# --- what is printed


def _check_printed(subject: Subject, bounds: Bounds, event: Event) -> None:
    first = 1 if event.name == "scx_bpf_exit_bstr" else 0  # after the exit code
    text = _format(subject, bounds, event.arguments[first])
    if text is None:
        subject.unusual(27, event.member, event.line, f"{event.raw}() is given a format that is not constant")
        return
    rest = _CONVERSION.sub(lambda match: match[1] if match[1] == "s" else "", text)
    if "%" in rest:
        subject.unusual(27, event.member, event.line, f"{event.raw}() prints more than numbers and names: {text!r}")
    values = iter(event.printed)
    for conversion in _CONVERSION.findall(text):
        value = next(values, None) if conversion != "%" else None
        named = value is not None and all(_is_name(each) for each in subject.walk.may_be(value))
        if conversion == "s" and (subject.standing is Standing.DERIVED or not named):
            subject.error(27, event, f"{event.raw}() prints a text, which may be anybody's")


def _is_name(term: Term) -> bool:
    """Whether a text is the name of a task, or stands in the object itself or in the kernel's configuration."""
    if term.kind is TermKind.ADDRESS:
        return term.name == "task_struct.comm"
    addends = linear(term)[1]
    return (
        len(addends) == 1
        and addends[0][0].kind is TermKind.GLOBAL
        and addends[0][0].name.startswith((".rodata", ".kconfig "))
    )


def _format(subject: Subject, bounds: Bounds, address: Term) -> str | None:
    """Return the text at an address in a data section, None if it may change or is not known."""
    constant, addends = linear(address)
    if len(addends) != 1 or addends[0][0].kind is not TermKind.GLOBAL:
        return None
    section, offset = addends[0][0].name, signed(constant)
    for variable in subject.image.variables.values():
        start = offset - variable.offset
        if variable.section == section and 0 <= start < variable.size:
            if not bounds.variables.is_constant(section, variable.offset, variable.size):
                return None
            return variable.content[start:].partition(b"\0")[0].decode("ascii", "replace")
    return None
