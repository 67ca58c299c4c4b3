"""The atomic tools over MCP: server, slow tool calls, and bearer token.

May import: schedagent.run, schedagent.verification, agents, verifier, repo_store, kernel_bpf, schedagent.core.
"""
