"""A symbolic walk along the paths of a callback: terms, facts, control flow, and the events met on the way.

May import: verifier.object, schedagent.core.
"""
