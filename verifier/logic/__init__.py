"""Scheduling logic read from the compiled object: `walk` follows each callback's paths, `rules` judges what happened.

May import: verifier.object, schedagent.core.
"""
