"""The report of a run: its type (`report`), how it is built (`build`), and its faces (`terminal`, `as_json`).

May import: schedagent.page, schedagent.approval, agents, repo_store, kernel_bpf, schedagent.core.
"""
