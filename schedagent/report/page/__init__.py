"""The report as one HTML page, and every form of it in a file.

May import: schedagent.report, schedagent.page, agents, repo_store, kernel_bpf, schedagent.core.
"""
