"""Planning without a model: the rules, and the policy builder that turns proposals into candidates.

May import: kernel_bpf, schedagent.core.
"""
