"""The gate that reads the source: rules on what only clang's syntax tree shows.

May import: kernel_bpf, schedagent.core.
"""
