"""`python -m schedagent` is `schedagent`."""

from schedagent.cli import main

main()
