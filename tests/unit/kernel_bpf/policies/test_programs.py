"""What is known of schedulers with a loader of their own, and which of them are installed."""

from __future__ import annotations

import shutil

import pytest

from kernel_bpf.policies.programs import PREFIX, InstalledPrograms, known_programs, list_programs, read_program
from schedagent.core.errors import UsageError
from schedagent.core.trials.workload import Goal

KNOWN = known_programs()
WELL_KNOWN = (
    "scx_bpfland", "scx_lavd", "scx_rusty", "scx_layered", "scx_flash", "scx_p2dq", "scx_cosmos", "scx_tickless",
    "scx_rustland", "scx_simple", "scx_central", "scx_nest", "scx_flatcg", "scx_beerland",
)  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """Two folders of a PATH; the same name is in both, and some files are no schedulers."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        shutil.copy("/bin/true", tmp_path / folder / "scx_both")
    shutil.copy("/bin/true", tmp_path / "second" / "scx_lavd")
    (tmp_path / "first" / "scx_data").write_text("not executable")
    (tmp_path / "first" / "scx_folder").mkdir()
    (tmp_path / "first" / "scx_script").write_text("#!/bin/sh\n")
    (tmp_path / "first" / "scx_script").chmod(0o755)
    return tmp_path


def test_the_well_known_ones_are_described():
    assert set(WELL_KNOWN) <= KNOWN.keys()
    for info in KNOWN.values():
        assert info.name.startswith(PREFIX)
        assert info.description.endswith(".")
        assert len(info.description) <= 100, "it is a cell of a table"
        assert bool(info.target_workloads) != bool(info.needs), "it is tried unasked, or it says why not"


def test_arguments_go_by_goal():
    assert KNOWN["scx_lavd"].arguments(Goal.LATENCY) == ("--performance",)
    assert KNOWN["scx_bpfland"].arguments(Goal.MAKESPAN) == ("--slice-us", "20000")
    assert KNOWN["scx_bpfland"].arguments(Goal.LATENCY) == ()


def test_programs_are_looked_for_in_path_then_where_roots_programs_are(folders):
    installed = InstalledPrograms.of_path(f"{folders}/first:relative::{folders}/second")
    assert [str(folder) for folder in installed.folders[:2]] == [f"{folders}/first", f"{folders}/second"]
    assert str(installed.folders[2]) == "/usr/local/sbin"


def test_what_can_be_executed_is_found_the_first_folder_first(folders):
    installed = InstalledPrograms((folders / "first", folders / "nowhere", folders / "second"))
    assert installed.names() == ["scx_both", "scx_lavd", "scx_script"]
    assert installed.find("scx_both") == folders / "first" / "scx_both"
    assert installed.find("scx_data") is None
    assert installed.program("scx_lavd", ["--performance"]).arguments == ("--performance",)
    assert installed.program("scx_script", []) is None, "what it starts is not known"
    assert installed.program("scx_nowhere", []) is None


def test_a_folder_that_cannot_be_looked_into_holds_nothing(folders):
    long = InstalledPrograms((folders / ("x" * 300), folders / "first" / "scx_data", folders / "second"))
    assert long.names() == ["scx_both", "scx_lavd"]
    assert long.find("scx_lavd") == folders / "second" / "scx_lavd"
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        read_program(folders / ("x" * 300), ())


def test_a_list_has_the_known_ones_and_what_else_is_installed(folders):
    listed = list_programs(InstalledPrograms((folders / "second",)))
    assert listed["scx_lavd"].path == str(folders / "second" / "scx_lavd")
    assert listed["scx_lavd"].standing == "installed"
    assert listed["scx_rusty"].standing == "not installed"
    assert listed["scx_both"].info.target_workloads == ()
