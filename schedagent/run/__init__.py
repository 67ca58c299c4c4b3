"""A run: its graph and nodes (`graph`, `nodes`), its life (`lifecycle`), and all that is opened for it (`opening`).

May import: schedagent.approval, schedagent.client, schedagent.experiment, schedagent.hostlab, schedagent.report,
agents, verifier, repo_store, kernel_bpf, schedagent.core.
"""
