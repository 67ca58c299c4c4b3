"""Once a day the agent service removes what is old, as `schedagent prune` does: nobody may look after its state."""

from __future__ import annotations

import logging

from schedagent.core.errors import SchedagentError
from schedagent.core.settings import Settings
from schedagent.run.progress import LineReporter
from schedagent.service.limits import DAY_S

log = logging.getLogger(__name__)


def prune_old(settings: Settings) -> None:
    """Remove what is older than `prune_days`; whatever is in the way, the service does not end over it."""
    from schedagent.retention.plan import make_plan
    from schedagent.retention.prune import carry_out
    from schedagent.retention.text import plan_text

    try:
        plan = make_plan(settings, settings.daemon.prune_days * DAY_S)
        if plan.count:
            log.info("%s", plan_text(plan, carry_out(settings, plan, LineReporter(log.debug))))
    except SchedagentError as error:
        log.warning("nothing was pruned: %s", error)
