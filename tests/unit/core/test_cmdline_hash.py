"""The hash that policies compute in the kernel, compiled for this machine, against core.policies.identity."""

import os
import random
import shutil
import subprocess

import pytest

from kernel_bpf.build.compile import BPF_INCLUDE
from schedagent.core.policies.identity import CMDLINE_LIMIT_BYTES, cmdline_identity, comm_identity

DRIVER = r"""
#include <stdio.h>
#include "cmdline_hash.h"

/* Reads records of two length bytes, then the command line, then 16 bytes of
 * command name; prints both identities of each. */
int main(void)
{
	unsigned char line[65536];
	char comm[16];
	int low, high;

	while ((low = getchar()) != EOF && (high = getchar()) != EOF) {
		struct cmdline_hash hash;
		unsigned int size = low + 256 * high, i;

		if (fread(line, 1, size, stdin) != size || fread(comm, 1, 16, stdin) != 16)
			return 1;
		cmdline_hash_start(&hash);
		for (i = 0; i < size && i < CMDLINE_LIMIT_BYTES; i++)
			cmdline_hash_step(&hash, line[i]);
		printf("%llu %llu\n", hash.sum, comm_hash(comm, 15));
	}
	return 0;
}
"""

EDGES = [
    b"",
    b"\0",
    b"cc\0-c\0a.c\0",
    b"cc\0-o\0/tmp/ccAbC.o\0a.c\0",
    b"/tmp/\0",
    b"/tmp\0/tm/\0/tmp/x",
    b"x/tmp/\0",
    b"/ttmp/\0//tmp/\0",
    b"unfinished",
    b"a\0\0b\0",
    b"\xff\xfe\x80\0",
    b"x" * (CMDLINE_LIMIT_BYTES - 1) + b"\0",
    b"x" * CMDLINE_LIMIT_BYTES + b"\0",
    b"a\0" * CMDLINE_LIMIT_BYTES,
]


@pytest.fixture(scope="module")
def hashes(tmp_path_factory):
    """A function from (command line, command name) pairs to what the C side makes of them."""
    compiler = shutil.which("clang-19") or "cc"
    folder = tmp_path_factory.mktemp("hash")
    (folder / "driver.c").write_text(DRIVER)
    program = folder / "driver"
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Werror", "-I", BPF_INCLUDE, "-o", program, folder / "driver.c"], check=True
    )

    def run(pairs):
        records = b"".join(len(line).to_bytes(2, "little") + line + comm.ljust(16, b"\0")[:16] for line, comm in pairs)
        output = subprocess.run([program], input=records, stdout=subprocess.PIPE, check=True, env=os.environ).stdout
        return [tuple(map(int, row.split())) for row in output.splitlines()]

    return run


def random_line(source):
    pieces = [b"/tmp/", b"/tmp", b"cc1", b"-O2", b"", b"a.c", b"/usr/bin/", b"\xe4", bytes([source.randrange(1, 256)])]
    words = (b"".join(source.choices(pieces, k=source.randrange(5))) for _ in range(source.randrange(120)))
    return b"\0".join(words) + source.choice([b"", b"\0"])


def test_kernel_and_python_agree_on_command_lines(hashes):
    source = random.Random(1)
    lines = EDGES + [random_line(source) for _ in range(2000)]
    assert sum(len(line) > CMDLINE_LIMIT_BYTES for line in lines) > 10
    answers = hashes([(line, b"x") for line in lines])
    assert [answer[0] for answer in answers] == [cmdline_identity(line) for line in lines]


def test_kernel_and_python_agree_on_command_names(hashes):
    names = ["", "a", "make", "fifteen-letters", "more-than-fifteen-letters", "kworker/0:1"]
    answers = hashes([(b"", name.encode()[:15]) for name in names])
    assert [answer[1] for answer in answers] == [comm_identity(name) for name in names]
