"""The verbs that set up this machine: what it lacks, how to get it, and the kernels of the VM.

May import: schedagent, agents, verifier, repo_store, kernel_bpf.
"""
