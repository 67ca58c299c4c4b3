"""The kernel's own schedulers and tests through the static gates: `python -m tests.field` (make test-field)."""
