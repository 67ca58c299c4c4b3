"""What reaches a terminal: foreign text made visible, and the console.

May import: schedagent.core.
"""
