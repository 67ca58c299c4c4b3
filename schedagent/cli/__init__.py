"""The command line: one file a verb or group of verbs, put together in `app`; thin over everything below.

May import: schedagent, agents, verifier, repo_store, kernel_bpf.
"""
