"""Further faces of a report: remarks, Markdown, samples as CSV, two runs side by side.

May import: schedagent.report, schedagent.page, schedagent.approval, agents, repo_store, kernel_bpf, schedagent.core.
"""
