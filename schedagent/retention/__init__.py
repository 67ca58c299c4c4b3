"""What may go of all that schedagent keeps: worked out as one plan (`plan`), shown (`text`), and carried out (`prune`).

`caches` and `state` find and remove, each in its folder; `deployed` asks what schedagentd has in its record.

May import: schedagent.run, schedagent.client, agents.llm.transcript, verifier, kernel_bpf, repo_store, schedagent.core.
"""
