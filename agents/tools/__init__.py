"""The atomic tools that a model, ours or over MCP, may call.

May import: agents.plain_text, agents.llm, repo_store, kernel_bpf, schedagent.core.
"""
