"""What a run shows to a person before it continues, what the person decided, and what a deployment of the winner needs.

May import: agents, repo_store, kernel_bpf, schedagent.core.
"""
