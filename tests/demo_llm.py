"""`make demo-llm`: the whole loop with a scripted model, in real micro-VMs.

    python -m tests.demo_llm [--budget-minutes 8]

The model is a script (`Demonstrator`) behind a real HTTP endpoint; everything else is what `schedagent optimize` does
for a user: the workload is observed, a policy is composed and another one patched; the patch loses tasks, so the
verifier rejects it; it is repaired, verified and measured; at the end stands what was learned and what the model cost.
Nothing that is measured is scripted, so the verdict may differ from run to run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.llm.transcript import transcript_path
from kernel_bpf.policies.library import load_library
from schedagent.core.settings import load_settings
from tests.support.model_server import ModelServer
from tests.support.paths import FIXTURES

WORKLOAD = FIXTURES / "cproject"
PROGRAM = [sys.executable, "-c", "from schedagent.cli.app import main; main()"]
PARENT = "local_steal"
FOUND, NOTHING_BETTER = 0, 3

DESCRIBED = {
    "meaning": "A parallel build: many compilers of similar length and one that needs much longer than the others. "
    "Fair sharing lets the long one finish after the CPUs have run out of other work.",
    "goal": "Start the longest compiler early and keep it running; do not let short helpers wait behind it.",
}

COMPOSED = {
    "origin": "compose",
    "policy": "tail_first",
    "tunables": [],
    "spec": {
        "name": "tail_first",
        "goal": "The longest step of a build early, short helpers at once.",
        "target_workloads": ["parallel-build", "batch-long-tail"],
        "starvation_ms": 1000,
        "classes": [
            {
                "name": "steps",
                "order": "longest_first",
                "placement": "previous_cpu",
                "slice_us": 20000,
                "prelude_us": 2000,
                "patience_ms": 1000,
            }
        ],
    },
    "diff": "",
    "source": "",
    "description": "Orders all steps by the CPU time that is still to come, with a short prelude for helpers.",
    "reason": "One compiler needs far longer than the others, so its start decides the makespan.",
    "expected": "The makespan shrinks towards the bound of the profile.",
    "refuted_by": "An interval of the ratio that holds one.",
}

SOURCE = load_library()[PARENT].source.read_text()
LOSES_TASKS = """\
\tif (is_pinned(p))
\t\treturn;
"""
SHORT_TURNS = """\
\tif (is_pinned(p)) {
\t\tdsq_insert_vtime(p, queue, clamp_slice(slice_ns() / 2), key,
\t\t\t\t enq_flags);
\t\twake_idle_cpu(p);
\t\treturn;
\t}
"""
BEFORE = "\tdsq_insert_vtime(p, queue, slice_ns(), key, enq_flags);\n\twake_idle_cpu(p);\n"


def diff(old: str, new: str) -> str:
    """Return a unified diff of the enqueue callback, as a model writes one."""
    import difflib

    return "".join(difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), "a", "b"))


def patched(text: str) -> str:
    """Return the source of the parent with these lines before its insert."""
    return SOURCE.replace(BEFORE, text + BEFORE)


def patch() -> dict[str, Any]:
    """Return the careless proposal: tasks that are bound to a CPU are forgotten, and so are lost."""
    return COMPOSED | {
        "origin": "patch",
        "policy": PARENT,
        "spec": None,
        "diff": diff(SOURCE, patched(LOSES_TASKS)),
        "description": "As local_steal, with shorter turns for tasks that are bound to one CPU.",
        "reason": "Compilers keep their warm caches, and what is bound to their CPU delays them less.",
        "expected": "Less time lost to migrations.",
        "refuted_by": "No shorter makespan than with tail_first.",
    }


class Demonstrator:
    """The scripted model."""

    def __init__(self) -> None:
        self.looked = False

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer by the agent that asks."""
        role = body["messages"][0]["content"].split()[3].lower()
        return getattr(self, role)(body)

    def observation(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {"content": DESCRIBED}

    def planning(self, _body: dict[str, Any]) -> dict[str, Any]:
        if not self.looked:  # patching begins with reading
            self.looked = True
            return {"tool_calls": [{"name": "show_policy", "arguments": {"policy": PARENT, "part": "source"}}]}
        reason = "One long compiler decides the makespan: order it, or keep the others out of its way."
        return {"content": {"reason": reason, "proposals": [COMPOSED, patch()]}}

    def execution(self, body: dict[str, Any]) -> dict[str, Any]:
        if "rule 18" not in body["messages"][-1]["content"]:
            return {"content": {"decision": "abandon", "reason": "I see no repair for this.", "diff": "", "source": ""}}
        repair = diff(patched(LOSES_TASKS), patched(SHORT_TURNS))
        reason = "The early return lost tasks that are bound to a CPU: they are queued with a shorter slice now."
        return {"content": {"decision": "repair", "reason": reason, "diff": repair, "source": ""}}

    def learning(self, body: dict[str, Any]) -> dict[str, Any]:
        lines = [line for line in body["messages"][1]["content"].splitlines() if " pairs" in line]
        insights = [{"text": lesson(line), "claims": [claim(line)]} for line in lines if outcome(line) in RELATIONS]
        return {"content": {"insights": insights}}


RELATIONS = {"better": "better", "worse": "worse", "no difference": "same"}
"""What is claimed of a candidate beside the default scheduler, by its outcome; of the others nothing can be."""


def outcome(line: str) -> str:
    """Return the outcome in a line of the history of trials."""
    return line.partition(": ")[2].partition(",")[0]


def claim(line: str) -> dict[str, str]:
    """Return what the trial of a line shows."""
    relation = RELATIONS[outcome(line)]
    return {"arm": line.split(maxsplit=1)[0], "relation": relation, "than": "default", "metric": "wall time"}


def lesson(line: str) -> str:
    """Say what a line of the history of trials teaches."""
    idea = "Ordering a build by expected CPU time" if " compose " in line else "Keeping compilers on their CPU"
    result = outcome(line)
    return f"{idea}: {result} than the default." if result in ("better", "worse") else f"{idea}: {result}."


def main() -> int:
    """Run the demo; its exit status is that of `schedagent optimize`."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo_llm", description="The loop with a scripted model.")
    parser.add_argument("--budget-minutes", type=float, default=8.0)
    chosen = parser.parse_args()
    folder = load_settings().cache_dir / "demo-llm"
    shutil.rmtree(folder, ignore_errors=True)
    with ModelServer(Demonstrator()) as server:
        own = environment(folder, server.url)
        done = subprocess.run(
            [*PROGRAM, "optimize", "--json", *options(chosen.budget_minutes)],
            env=own,
            stdout=subprocess.PIPE,
            check=False,
        )
    if done.returncode not in (FOUND, NOTHING_BETTER):
        return done.returncode
    report = json.loads(done.stdout)
    console = Console(emoji=False)
    subprocess.run([*PROGRAM, "runs", "show", report["run"]], env=own, check=True)
    kept = transcript_path(folder / "state" / "schedagent", report["run"])
    for line in [*story(report), f"What was asked and answered: {kept}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return done.returncode


def options(budget_minutes: float) -> list[str]:
    """Return what is optimised, and how long at most."""
    work = ["--workload", "make -j", "--dir", str(WORKLOAD), "--prepare", "make clean"]
    return [*work, "--iterations", "1", "--candidates", "2", "--budget-minutes", str(budget_minutes)]


def environment(folder: Path, url: str) -> dict[str, str]:
    """Return an environment with a state and a configuration of its own: nothing scripted is remembered elsewhere."""
    config = folder / "config" / "schedagent" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[model_prices."scripted"]\ninput = 0.25\noutput = 2.00\n')
    own = {
        "SCHEDAGENT_STATE": str(folder / "state" / "schedagent"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": "demo",
        "SCHEDAGENT_MODEL": "scripted",
        "no_proxy": "127.0.0.1",
    }
    return {**os.environ, **own}


def story(report: dict[str, Any]) -> list[str]:
    """Tell what happened, in order."""
    steps = {"observed": report["meaning"]["meaning"] if report["meaning"] else "nothing in words"}
    lines = ["", "The story:", f"  observed: {steps['observed']}"]
    for candidate in report["iterations"][0]["candidates"]:
        how = f"{candidate['origin']} {candidate['policy']}"
        closed = next((gate["gate"] for gate in candidate["gates"] if gate["status"] == "failed"), "")
        ended = f"rejected by gate {closed!r}" if closed else candidate["verdict"]["outcome"]
        lines.append(f"  {'repaired' if candidate['repairs'] else 'planned'}: {how}: {ended}")
    lines += [f"  learned: {insight['text']}" for insight in report["insights"]]
    return [*lines, f"  cost: {report['model']['used']}"]


if __name__ == "__main__":
    sys.exit(main())
