"""Everything about reaching a model: the client, one question at a time, budget, fences and transcript.

May import: schedagent.core.
"""
