"""The report of a run, and how it looks on a terminal and as JSON.

May import: schedagent.approval, agents, repo_store, kernel_bpf, schedagent.core.
"""
