"""The Prometheus exporter: its metrics (`catalog`), their sources (the parts), and its HTTP server (`server`).

Parts read when they are scraped, change nothing, and fail one by one.

May import: schedagent.client, agents.llm, repo_store, kernel_bpf, schedagent.core.
"""
