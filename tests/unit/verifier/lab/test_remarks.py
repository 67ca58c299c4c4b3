"""What is said of a run: refused where its figures are nonsense, else a sentence for what a user should know."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from schedagent.core.trials.trial import DEFAULT_ARM, Sample
from schedagent.core.trials.usage import Usage
from schedagent.core.trials.workload import Goal, Observation, WorkloadCommand
from verifier.lab.remarks import (
    GENERAL_HINT,
    failure_hint,
    failure_seen,
    nothing_done,
    plain_shell,
    remarks,
    why_nonsense,
)
from verifier.microvm import jobs

SECOND = 1_000_000_000
WORKLOAD = WorkloadCommand("make -j", "/src", shell="/bin/dash")
MEASURED = replace(WORKLOAD, goal=Goal.LATENCY, metric="p99: (.*)")
SAMPLE = Sample(DEFAULT_ARM, 5.0, 5 * SECOND, 9 * SECOND, 0, "now", 1, usage=Usage(10, 10))
OBSERVATION = Observation(5 * SECOND, 2, (), ((0, 2), (SECOND, 3)), 0, 0, 0, 0)
ANSWER = jobs.RunAnswer(5 * SECOND, 9 * SECOND, 0, 0, 1, "", "", None, asdict(Usage(1, 1)))


def used(**changes) -> Sample:
    return replace(SAMPLE, usage=replace(SAMPLE.usage, **changes))


def test_an_ordinary_run_needs_no_words():
    assert remarks(WORKLOAD, SAMPLE, OBSERVATION) == ()
    assert why_nonsense(WORKLOAD, SAMPLE, ()) is None
    assert failure_seen(WORKLOAD, ANSWER) is None


class TestNonsense:
    def test_work_that_went_on_under_dash_names_the_cause(self):
        workload = replace(WORKLOAD, command="make -j &> build.log")
        nonsense = why_nonsense(workload, SAMPLE, ["cc1", "make"])
        assert nonsense.what == "returned while work it had started was still going on: cc1, make"
        assert "in /bin/dash &> runs the command in the background" in nonsense.hint
        assert "--shell bash" in nonsense.hint
        assert "> FILE 2>&1" in nonsense.hint

    def test_work_that_went_on_otherwise(self):
        short = replace(SAMPLE, cpu_ns=SECOND // 20)
        nonsense = why_nonsense(replace(WORKLOAD, command="make -j &"), short, ["make"])
        assert "`wait`" in nonsense.hint
        bash = replace(WORKLOAD, command="make &> log &", shell="/bin/bash")
        assert "--shell" not in why_nonsense(bash, short, ["make"]).hint

    def test_a_load_beside_a_benchmark_is_no_nonsense(self):
        assert why_nonsense(WORKLOAD, SAMPLE, ["hog"]) is None
        assert why_nonsense(MEASURED, replace(SAMPLE, cpu_ns=SECOND // 20), ["hog"]) is None

    @pytest.mark.parametrize(
        ("output", "clean"),
        [
            ("make: Nothing to be done for 'all'.\n", "make clean"),
            ("make[1]: Entering directory\nmake[1]: 'demo' is up to date.\nmake[1]: Leaving\n", "make clean"),
            ("ninja: no work to do.\n", "ninja -t clean"),
            ("    Finished `dev` profile [unoptimized] target(s) in 0.05s\n", "cargo clean"),
        ],
    )
    def test_nothing_left_to_build(self, output, clean):
        idle = replace(SAMPLE, cpu_ns=SECOND // 20, output_tail=output)
        nonsense = why_nonsense(WORKLOAD, idle, ())
        assert nonsense.what.startswith("had nothing left to do: ")
        assert nonsense.hint.endswith(f"--prepare '{clean}'")
        assert nothing_done(replace(idle, cpu_ns=5 * SECOND)) is None

    @pytest.mark.parametrize(
        "output", ["make: *** No rule", "   Compiling a\n    Finished `dev` profile target(s) in 9s\n", "done\n"]
    )
    def test_a_build_that_did_something(self, output):
        assert nothing_done(replace(SAMPLE, cpu_ns=SECOND // 20, output_tail=output)) is None


class TestFailures:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"prepare_status": 2}, "--prepare command ended with exit status 2"),
            ({"prepare_status": None}, "--prepare command ran into its time limit"),
            ({"waited": True, "exit_status": None}, "waited for a long time"),
            ({"usage": asdict(Usage(0, 0, full="memory"))}, "memory ran full"),
            ({"usage": asdict(Usage(0, 0, full="/out/big")), "exit_status": 1}, "most of it is in /out/big"),
            ({"busy": ["make"], "cpu_ns": SECOND // 20}, "still going on: make"),
        ],
    )
    @pytest.mark.parametrize("ignoring", [False, True])
    def test_what_the_exit_status_does_not_show(self, changes, words, ignoring):
        assert words in failure_seen(replace(WORKLOAD, ignore_failure=ignoring), replace(ANSWER, **changes))

    def test_a_status_that_is_ignored(self):
        ignoring = replace(WORKLOAD, ignore_failure=True)
        assert failure_seen(ignoring, replace(ANSWER, exit_status=3)) == ""
        assert failure_seen(ignoring, replace(ANSWER, exit_status=None)) is None
        assert failure_seen(WORKLOAD, replace(ANSWER, exit_status=3)) is None

    def test_a_full_layer_that_the_command_survived_is_a_remark(self):
        assert failure_seen(WORKLOAD, replace(ANSWER, usage=asdict(Usage(0, 0, full="/out/big")))) is None
        assert "/out/big" in remarks(WORKLOAD, used(full="/out/big"), OBSERVATION)[0]

    @pytest.mark.parametrize(
        ("output", "words"),
        [
            ("EOFError: EOF when reading a line", "standard input is /dev/null"),
            ("stty: 'standard input': Inappropriate ioctl for device", "standard input is /dev/null"),
            ("curl: (6) Could not resolve host: x", "no network"),
            ("socket.gaierror: Temporary failure in name resolution", "no network"),
            ("cp: error writing 'x': No space left on device", "--memory"),
            ("MemoryError", "--memory"),
            ("segmentation fault", GENERAL_HINT),
        ],
    )
    def test_the_hint_fits_what_was_printed(self, output, words):
        assert words in failure_hint(WORKLOAD, SAMPLE, output)

    def test_the_hint_fits_what_ran_full(self):
        assert "less to do at once" in failure_hint(WORKLOAD, used(full="memory"), "")
        assert "write less" in failure_hint(WORKLOAD, used(full="/big"), "")
        assert "cannot be scheduled better" in failure_hint(WORKLOAD, used(failure="it waited for long"), "")

    def test_the_hint_fits_the_shell(self):
        arrays = replace(WORKLOAD, command="a=(1 2); echo ${a[0]}")
        assert failure_hint(arrays, SAMPLE, 'Syntax error: "("') == "/bin/dash does not know arrays: give --shell bash"


class TestRemarks:
    def only(self, workload=WORKLOAD, sample=SAMPLE, observation=OBSERVATION):
        [remark] = remarks(workload, sample, observation)
        return remark

    def test_bash_under_a_plain_shell(self):
        words = self.only(replace(WORKLOAD, command="for i in {1..8}; do ./work; done"))
        assert "{1..8}" in words
        assert "--shell bash" in words

    def test_bash_in_prepare_counts_as_well(self):
        assert "[[ ]]" in self.only(replace(WORKLOAD, prepare="[[ -f x ]] && rm x"))

    def test_almost_nothing_to_do(self):
        words = self.only(sample=replace(SAMPLE, wall_ns=SECOND // 10, cpu_ns=SECOND // 20))
        assert "after 0.1 s with 0.05 s of CPU time" in words
        assert "--prepare" in words

    def test_waiting(self):
        words = self.only(sample=replace(SAMPLE, wall_ns=20 * SECOND, cpu_ns=SECOND // 2))
        assert "0.5 s of CPU time in 20 s" in words

    def test_leftovers(self):
        words = self.only(sample=used(left_behind=("redis-server", "sleep"), left_cpu_ns=SECOND // 4))
        assert "redis-server, sleep" in words
        assert "0.25 s" in words

    def test_a_crowd_matters_to_latencies_and_to_memory_only(self):
        crowd = replace(OBSERVATION, parallelism=((0, 20), (1, 22)))
        assert remarks(WORKLOAD, SAMPLE, crowd) == ()
        assert "21 tasks wanted the lab's 2 CPUs" in self.only(MEASURED, observation=crowd)
        assert "memory in 10% of the time" in self.only(observation=replace(crowd, psi_memory_us=500_000))

    def test_output_that_was_cut(self):
        assert "of the 3000.0 MB it printed, 1024 KiB are kept" in self.only(sample=used(output_bytes=3_000_000_000))


@pytest.mark.parametrize(
    ("shell", "plain"), [("/bin/dash", True), ("/bin/bash -e", False), ("zsh", False), ("", False)]
)
def test_which_shells_are_plain(shell, plain):
    assert plain_shell(shell) == plain


def test_the_name_of_a_shell_counts_after_its_links(tmp_path):
    (tmp_path / "sh").symlink_to("/bin/bash")
    (tmp_path / "zsh").symlink_to("/bin/dash")
    assert (plain_shell(f"{tmp_path}/sh"), plain_shell(f"{tmp_path}/zsh -e")) == (False, True)
