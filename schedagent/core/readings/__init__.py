"""Numbers in a run's output: reading them, asking for them, and presets for known benchmarks.

May import: schedagent.core.
"""
