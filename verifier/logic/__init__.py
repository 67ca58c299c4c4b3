"""Scheduling logic read from the compiled object: terms, control flow, a walk along paths, and the rules.

May import: kernel_bpf, schedagent.core and the rest of verifier that is not the pipeline.
"""
