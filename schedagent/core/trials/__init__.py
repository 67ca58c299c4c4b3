"""Trials as data: the workload, its samples, the verdict over them, and the lesson.

May import: schedagent.core.
"""
