"""What separates an emulated lab from the host beneath it, by running the same probe in both."""

from __future__ import annotations

import json
import logging

from schedagent.core.errors import SetupError
from schedagent.core.trials.usage import MachineCosts
from verifier.microvm.image import run_like_agent
from verifier.microvm.jobs import CostsAnswer

log = logging.getLogger(__name__)

_PROGRAM = "import json\nfrom verifier.guest import costs\nprint(json.dumps(costs.measure().to_json()))"


def probe_host() -> CostsAnswer:
    """Measure here, with the interpreter that the guest has; raise SetupError if it cannot be run."""
    done = run_like_agent(_PROGRAM)
    if done.returncode != 0:
        raise SetupError(f"the probe of this machine failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    return CostsAnswer.from_json(json.loads(done.stdout))


def compare(lab: CostsAnswer, host: CostsAnswer) -> MachineCosts | None:
    """Return what the two figures make of the lab; None if they cannot be true, because the host was disturbed."""
    if min(lab.work_ns, host.work_ns, lab.switch_ns, host.switch_ns) <= 0 or lab.work_ns < host.work_ns:
        log.warning("what emulation costs could not be measured, this machine is too busy: %s, %s", lab, host)
        return None
    return MachineCosts(lab.work_ns / host.work_ns, lab.switch_ns, host.switch_ns)
