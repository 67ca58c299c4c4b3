"""What a run shows to a person, what was decided, and what deploying the winner needs.

May import: agents, repo_store, kernel_bpf, schedagent.core.
"""
