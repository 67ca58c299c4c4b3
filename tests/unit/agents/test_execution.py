"""The Execution agent: what is run, in which order, and what is left out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from agents.execution import REPAIRS, Execution, Trial
from schedagent.core.errors import KernelRejected, PolicyError
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.trials.arm import BATCH
from schedagent.core.trials.judge import Terms, TrialRules
from schedagent.core.trials.race import judge_all
from schedagent.core.trials.trial import DEFAULT_ARM, Outcome, Sample
from tests.support import scripted_lab as scripted
from tests.support.scripted_lab import LIBRARY, UNFAIR, WORKLOAD, Script
from verifier.lab.vm import LabPolicy

CANDIDATES = [CandidatePolicy(name, info.configured({})) for name, info in LIBRARY.items()]
BY_NAME = {candidate.policy: candidate for candidate in CANDIDATES}


@dataclass
class Notebook:
    """Keeps everything in memory."""

    reports: dict = field(default_factory=dict)
    kept: list = field(default_factory=list)
    repaired: dict = field(default_factory=dict)

    def repairs(self):
        return dict(self.repaired)

    def save_repair(self, failed_key, repaired):
        assert failed_key not in self.repaired
        self.repaired[failed_key] = repaired

    def verification(self, key):
        return self.reports.get(key)

    def save_verification(self, report):
        assert report.candidate_key not in self.reports
        self.reports[report.candidate_key] = report

    def blocks(self):
        return list(self.kept)

    def add_block(self, block):
        assert block.number == len(self.kept)
        self.kept.append(block)


class Silent:
    def step(self, text): ...

    def count(self, text, done, total): ...


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


def execute(
    script,
    notebook=None,
    *,
    candidates=CANDIDATES,
    seed=1,
    rules=scripted.RULES,
    out_of_time=lambda: False,
    repairer=None,
):
    notebook = notebook or Notebook()
    agent = Execution(scripted.Verifier(script), scripted.Lab(script), LIBRARY, Silent(), out_of_time, repairer)
    agent.execute(candidates, notebook, Terms(WORKLOAD, rules), seed=seed)
    return notebook


TERMS = Terms(WORKLOAD, scripted.RULES)


def orders(notebook):
    return [tuple(sample.arm for sample in block.samples) for block in notebook.kept]


def runs_of(notebook, policy):
    return sum(BY_NAME[policy].key in order for order in orders(notebook))


def test_every_block_has_the_default_and_each_candidate_that_runs_once(script):
    arms = {DEFAULT_ARM, *(candidate.key for candidate in CANDIDATES)}
    found = orders(execute(script))
    knobs = {BATCH.key}
    assert [set(order) for order in found[:3]] == [{DEFAULT_ARM}, arms | knobs, arms | knobs], "warm-up and race"
    assert all(len(set(order)) == len(order) and order.count(DEFAULT_ARM) == 1 for order in found)
    own = {DEFAULT_ARM, BY_NAME["longest_first"].key}
    assert [set(order) for order in found[3:]] == [own | knobs, *[own] * 5], "its own blocks; knobs run three times"


def test_the_order_is_drawn_from_the_seed(tmp_path):
    found = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(orders(execute(Script(folder, ratios={}), seed=seed)))
    first, again, other = (runs[:7] for runs in found)
    assert first == again
    assert first != other
    assert len(set(first)) > 2, "every block runs in the same order"
    assert len({order[0] for order in first}) > 1, "the default always comes first"


def test_the_warm_up_is_kept_and_never_compared(script):
    notebook = execute(script, candidates=CANDIDATES[:1])
    warm = notebook.kept[0]
    assert warm.number == 0
    [verdict] = judge_all(notebook.kept, [CANDIDATES[0].key], TERMS).values()
    assert verdict.pairs == len(notebook.kept) - 1
    wild = replace(warm, samples=tuple(replace(sample, value=sample.value * 50) for sample in warm.samples))
    [same] = judge_all([wild, *notebook.kept[1:]], [CANDIDATES[0].key], TERMS).values()
    assert same == verdict


def test_a_decided_candidate_is_not_run_on(script):
    notebook = execute(script)
    assert runs_of(notebook, "longest_first") == 8, "two blocks of the race, and six of its own"
    assert runs_of(notebook, "plain") == 2, "who is behind runs no longer"


def test_an_undecided_one_gets_all_pairs(script):
    rules = TrialRules(minimum_effect=0.001, maximum_pairs=9)  # too fine for one that makes no difference
    assert runs_of(execute(script, candidates=[PLAIN], rules=rules), "plain") == 10


def test_a_failed_candidate_is_not_run_on_and_the_others_are(script):
    notebook = execute(replace(script, faults={"plain": "exit"}))
    assert runs_of(notebook, "plain") == 2, "once may happen to every program"
    assert runs_of(notebook, "longest_first") >= 7


def test_a_candidate_whose_machine_is_lost_is_left_out(script):
    notebook = execute(replace(script, faults={"plain": "lost"}))
    assert runs_of(notebook, "plain") == 0
    assert runs_of(notebook, "longest_first") == 8
    verdicts = judge_all(notebook.kept, list(notebook.reports), TERMS)
    assert verdicts[BY_NAME["plain"].key].outcome is Outcome.INCONCLUSIVE


def test_a_closed_gate_keeps_a_candidate_from_being_run(script):
    notebook = execute(replace(script, faults={"plain": "attach", "turns": "lost while verified"}))
    assert runs_of(notebook, "plain") == runs_of(notebook, "turns") == 0
    assert runs_of(notebook, "longest_first") == 7, "the only one is warmed up"
    assert set(notebook.reports) == {candidate.key for candidate in CANDIDATES}


def test_all_gates_closed_opens_no_machine(script):
    execute(replace(script, faults=dict.fromkeys(LIBRARY, "source")))
    assert script.log.count("session") == 0


def test_a_resumed_trial_goes_on_behind_its_last_block_in_a_warmed_machine(script):
    notebook = execute(script, out_of_time=lambda: script.log.count("run") > 12)
    begun = list(notebook.kept)
    assert 0 < len(begun) < 7
    runs = script.log.count("run")
    execute(script, notebook)
    assert notebook.kept[: len(begun)] == begun
    new_samples = sum(len(block.samples) for block in notebook.kept[len(begun) :])
    assert script.log.count("run") - runs == new_samples + 1, "one unrecorded run warms the fresh machine"
    assert script.log.count("verify") == len(CANDIDATES)


def test_a_warm_up_may_be_longer(script):
    agent = Execution(
        scripted.Verifier(script), scripted.Lab(script), LIBRARY, Silent(), lambda: False, repairer=None, warmup=3
    )
    notebook = Notebook()
    agent.execute([PLAIN], notebook, TERMS, seed=1)
    stored = sum(len(block.samples) for block in notebook.kept)
    assert script.log.count("run") == stored + 2, "two runs before the warm-up block"


def test_a_finished_trial_is_not_opened_again(script):
    notebook = execute(script)
    sessions, blocks = script.log.count("session"), list(notebook.kept)
    execute(script, notebook)
    assert script.log.count("session") == sessions
    assert notebook.kept == blocks


def test_no_time_means_no_work(script):
    notebook = execute(script, out_of_time=lambda: True)
    assert (notebook.reports, notebook.kept) == ({}, [])
    assert script.log == []


def test_time_that_runs_out_while_verifying(script):
    """No new verification and no trial begins; the one that was made is kept."""
    notebook = execute(script, out_of_time=lambda: script.log.count("verify") >= 1)
    assert list(notebook.reports) == [CANDIDATES[0].key]
    assert notebook.kept == []


@pytest.mark.parametrize(
    ("finished_at", "cut"),
    [
        ("never", False),
        ("before anything", True),
        ("while verifying", True),
        ("while measuring", True),
        ("as the last pair is stored", False),
    ],
)
def test_it_is_cut_by_the_time_only_if_something_was_left_to_do(script, finished_at, cut):
    whole = len(execute(script).kept)
    notebook = Notebook()
    over = {
        "never": lambda: False,
        "before anything": lambda: True,
        "while verifying": lambda: len(notebook.reports) == 1,
        "while measuring": lambda: len(notebook.kept) == whole - 1,
        "as the last pair is stored": lambda: len(notebook.kept) >= whole,
    }[finished_at]
    agent = Execution(scripted.Verifier(script), scripted.Lab(script), LIBRARY, Silent(), over)
    assert agent.execute(CANDIDATES, notebook, TERMS, seed=1) is cut


def test_the_default_runs_beside_a_candidate_so_that_both_arms_pay_for_the_attach():
    beside = []

    class Runs:
        def run_default(self, policy=None):
            beside.append(policy.candidate.key if policy else None)
            if policy:
                raise KernelRejected("it would not attach")
            return sample(DEFAULT_ARM)

        def run_candidate(self, policy):
            return sample(policy.candidate.key)

        def run_knob(self, knob, policy):
            return sample(knob.key)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    def sample(arm):
        return Sample(arm, 1.0, 10**9, 10**9, 0, "now", 1000)

    class OneSession:
        def session(self, _workload):
            return Runs()

    policy = LabPolicy(CANDIDATES[0], PolicyArtifact("fifo", b"elf", "source", "btf"))
    agent = SimpleNamespace(
        lab=OneSession(),
        out_of_time=lambda: False,
        warmup=1,
        reporter=SimpleNamespace(count=lambda *_: None),
    )
    kept = []
    notebook = SimpleNamespace(blocks=lambda: (), add_block=kept.append)
    Trial(agent, [policy], notebook, TERMS, seed=1).run()
    assert beside[:2] == [CANDIDATES[0].key, None]
    assert all(block.sample(DEFAULT_ARM) for block in kept)


# --- repairs ----------------------------------------------------------------------------------------------------------


PLAIN, TURNS, LONGEST = (BY_NAME[name] for name in ("plain", "turns", "longest_first"))


@dataclass
class Mender:
    """Decides as told, by policy; remembers what it was asked."""

    repairs: dict = field(default_factory=dict)
    retries: set = field(default_factory=set)
    asked: list = field(default_factory=list)

    def after_gate(self, candidate, report):
        self.asked.append(("gate", candidate, report.failure.gate))
        return SimpleNamespace(repaired=self.repairs.get(candidate.label), retry=False)

    def after_trial(self, candidate, trouble, *, lost):
        self.asked.append(("trial", candidate, trouble))
        return SimpleNamespace(repaired=self.repairs.get(candidate.label), retry=candidate.policy in self.retries)


def test_a_rejected_candidate_is_repaired_verified_and_run(script):
    repairer = Mender({PLAIN.label: TURNS})
    notebook = execute(replace(script, faults={"plain": "attach"}), candidates=[PLAIN, LONGEST], repairer=repairer)
    assert repairer.asked == [("gate", PLAIN, "attach")]
    assert notebook.repaired == {PLAIN.key: TURNS}
    assert notebook.reports[TURNS.key].passed
    assert runs_of(notebook, "plain") == 0
    assert runs_of(notebook, "turns") > 0
    assert runs_of(notebook, "longest_first") == 8


def test_what_is_safe_is_run_although_it_is_unfair(script):
    notebook = execute(replace(script, faults={"longest_first": UNFAIR, "plain": "attach"}))
    assert not notebook.reports[LONGEST.key].passed
    assert runs_of(notebook, "longest_first") == 8
    assert runs_of(notebook, "plain") == 0


def test_what_has_no_verdict_is_not_run(script):
    notebook = execute(replace(script, faults={"longest_first": "lost while verified"}))
    assert notebook.reports[LONGEST.key].safe, "only its overhead is not known"
    assert runs_of(notebook, "longest_first") == 0


def test_a_repair_may_be_repaired_but_not_for_ever(script):
    faulty = replace(script, faults={"plain": "attach"})
    chain = [replace(PLAIN, tunables=(("slice_us", 1000 + number),)) for number in range(5)]
    repairer = Mender({before.label: after for before, after in itertools.pairwise(chain)})
    notebook = execute(faulty, candidates=chain[:1], repairer=repairer)
    assert len(repairer.asked) == REPAIRS
    assert list(notebook.reports) == [candidate.key for candidate in chain[: REPAIRS + 1]]


def test_a_repair_that_is_stored_is_not_asked_for_again(script):
    faulty = replace(script, faults={"plain": "attach"})
    notebook = execute(faulty, candidates=[PLAIN], repairer=Mender({PLAIN.label: TURNS}))
    del notebook.reports[TURNS.key]
    notebook.kept.clear()
    repairer = Mender()
    execute(faulty, notebook, candidates=[PLAIN], repairer=repairer)
    assert repairer.asked == []
    assert notebook.reports[TURNS.key].passed
    assert runs_of(notebook, "turns") > 0


def test_what_fails_in_its_trial_is_repaired_and_goes_through_the_gates(script):
    repairer = Mender({PLAIN.label: TURNS})
    notebook = execute(replace(script, faults={"plain": "ejected"}), candidates=[PLAIN, LONGEST], repairer=repairer)
    [(when, candidate, trouble)] = repairer.asked
    assert (when, candidate) == ("trial", PLAIN)
    assert "runnable task stall" in trouble
    assert notebook.reports[TURNS.key].passed
    assert runs_of(notebook, "plain") == 1
    assert runs_of(notebook, "turns") > 0


def test_what_was_lost_is_retried_as_often_as_it_may_be_repaired(script):
    lossy = replace(script, faults={"plain": "lost"})
    repairer = Mender(retries={"plain"})
    execute(lossy, candidates=[PLAIN], repairer=repairer)
    assert [asked[0] for asked in repairer.asked] == ["trial"] * (REPAIRS + 1)
    assert script.log.count("session") == REPAIRS + 1


def test_a_repair_that_is_in_the_plan_already_is_none(script):
    class Strict(Notebook):
        def save_repair(self, failed_key, repaired):
            raise PolicyError("it is a candidate of this iteration already")

    faulty = replace(script, faults={"plain": "attach"})
    notebook = execute(faulty, Strict(), candidates=[PLAIN, TURNS], repairer=Mender({PLAIN.label: TURNS}))
    assert set(notebook.reports) == {PLAIN.key, TURNS.key}
    assert runs_of(notebook, "turns") > 0


def test_without_time_nothing_is_repaired(script):
    repairer = Mender({PLAIN.label: TURNS})
    faulty = replace(script, faults={"plain": "attach"})
    execute(faulty, candidates=[PLAIN], repairer=repairer, out_of_time=lambda: "verify" in script.log)
    assert repairer.asked == []
