"""What may go of all that is kept: one plan, shown (`text`), then carried out (`prune`).

`caches` and `state` find and remove, each in its folder; `deployed` asks what schedagentd has in its record.

May import: schedagent.run, schedagent.client, agents.llm.transcript, verifier, kernel_bpf, repo_store, schedagent.core.
"""
