"""verifier.logic.taint.looked: the constants that inputs are compared with."""

import pytest

from tests.support.small_policy import compiled
from verifier.logic.taint.looked import LIMIT, constants

TASK = """
struct kuid { u32 val; };
struct cred { struct kuid uid; struct kuid gid; } __attribute__((preserve_access_index));
struct task_struct___in {
    char comm[16];
    const struct cred *cred;
    s32 tgid;
} __attribute__((preserve_access_index));
#define IN(p) ((struct task_struct___in *)(p))
"""


def test_a_name_compared_byte_by_byte_is_worn(tmp_path):
    body = """
    const char *comm = IN(p)->comm;

    if (comm[0] == 's' && comm[1] == 's' && comm[2] == 'h' && comm[3] == 'd' && !comm[4])
        return;
    scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
    """
    looked = constants(compiled(tmp_path, before=TASK, enqueue=body))
    assert "sshd" in looked.names
    assert "comm" in looked.inputs


@pytest.mark.parametrize(("kind", "spelled"), [("u64", "0x6e6769656e6967"), ("u32", "0x64687373")])
def test_a_name_compared_as_a_word_is_worn(tmp_path, kind, spelled):
    body = f"""
    if (*({kind} *)IN(p)->comm == {spelled})
        return;
    scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
    """
    looked = constants(compiled(tmp_path, before=TASK, enqueue=body))
    size = {"u64": 8, "u32": 4}[kind]
    assert int(spelled, 16).to_bytes(size, "little").rstrip(b"\0").decode() in looked.names


def test_a_name_in_read_only_data_is_worn(tmp_path):
    body = """
    if (!bpf_strncmp(IN(p)->comm, 5, victim))
        return;
    scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
    """
    looked = constants(compiled(tmp_path, before=TASK + 'const char victim[] = "nginx";', enqueue=body))
    assert "nginx" in looked.names


def test_numbers_are_worn_by_what_they_may_be_compared_with(tmp_path):
    body = """
    if (IN(p)->cred->uid.val >= 1000 || IN(p)->cred->gid.val == 33 || IN(p)->tgid == 4711)
        return;
    scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
    """
    looked = constants(compiled(tmp_path, before=TASK, enqueue=body))
    assert {"uid", "gid", "pid"} <= {*looked.inputs}
    assert min(abs(uid - 1000) for uid in looked.uids) <= 1
    assert 33 in looked.gids
    assert 4711 in looked.pids


def test_a_time_is_given_in_seconds(tmp_path):
    body = """
    if (bpf_ktime_get_ns() > 3600ULL * 1000000000)
        return;
    scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
    """
    assert 3600 in constants(compiled(tmp_path, enqueue=body)).seconds


def test_a_hostile_object_cannot_propose_without_end(tmp_path):
    tests = "\n".join(f"if (IN(p)->tgid == {1000 + 7 * each}) return;" for each in range(200))
    looked = constants(
        compiled(tmp_path, before=TASK, enqueue=f"{tests}\nscx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);")
    )
    assert 0 < len(looked.pids) <= LIMIT


def test_a_policy_that_reads_nothing_proposes_no_names_or_users(tmp_path):
    looked = constants(compiled(tmp_path))
    assert (looked.inputs, looked.names, looked.uids, looked.gids, looked.pids) == ((), (), (), (), ())
