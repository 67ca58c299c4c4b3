"""The verbs that set this machine up and clean it up.

May import: schedagent, agents, verifier, repo_store, kernel_bpf.
"""
