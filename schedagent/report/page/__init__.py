"""The report as one HTML page: its sections, its plots, what a gain would save; and every form of it in a file.

May import: schedagent.report, schedagent.page, agents, repo_store, kernel_bpf, schedagent.core.
"""
