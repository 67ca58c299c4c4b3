"""The rules of scheduling, decided on what the walks found.

May import: verifier.logic.walk, verifier.object, schedagent.core.
"""
