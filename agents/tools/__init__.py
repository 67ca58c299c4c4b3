"""The atomic tools that a model, ours or over MCP, may call: the catalog, and what the tools work on.

May import: agents.plain_text, agents.llm, repo_store, kernel_bpf, schedagent.core.
"""
