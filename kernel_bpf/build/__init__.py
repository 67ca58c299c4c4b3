"""From C source to BPF object: clang in a sandbox, its syntax tree, and the kernel that is compiled for.

May import: kernel_bpf.load, schedagent.core.
"""
