"""The atomic tools over MCP: the server, slow tool calls in processes of their own, and the bearer token.

May import: schedagent.run, schedagent.verification, agents, verifier, repo_store, kernel_bpf, schedagent.core.
"""
