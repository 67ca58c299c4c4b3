"""The Prometheus exporter: what it tells (`catalog`), where it looks (the parts), and how it is asked (`server`).

Parts look when they are scraped, change nothing, and fail one by one.

May import: schedagent.client, agents.llm, repo_store, kernel_bpf, schedagent.core.
"""
