"""The report as one HTML page: its sections, its plots, and what a gain would save.

May import: schedagent.report, schedagent.page, agents, repo_store, kernel_bpf, schedagent.core.
"""
