"""Which inputs reach which decisions of a policy (rule 32), and the constants beside them.

May import: verifier.logic.walk, verifier.object, schedagent.core.
"""
