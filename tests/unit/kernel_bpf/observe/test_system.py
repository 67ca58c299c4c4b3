"""Facts about a machine, as kernel_bpf.observe.system reads them."""

import pytest

from kernel_bpf.observe.system import cpus_in


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3\n", (0, 1, 2, 3)), ("0,2-3,8", (0, 2, 3, 8)), ("5", (5,)), ("\n", ())]
)
def test_a_list_of_cpus_is_read_as_sysfs_writes_it(text, cpus):
    assert cpus_in(text) == cpus
