"""Which inputs reach which decisions of a policy (rule 32), and the constants that it compares them with.

May import: verifier.logic.walk, verifier.object, schedagent.core.
"""
