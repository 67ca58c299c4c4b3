"""What reaches a terminal: foreign text made visible, and the console that tables and progress go through.

May import: schedagent.core.
"""
