"""The policy library: sources, their manifests, and policies composed from a spec.

May import: kernel_bpf.build, schedagent.core.
"""
