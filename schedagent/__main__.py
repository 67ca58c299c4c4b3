"""`python -m schedagent` is `schedagent`."""

from schedagent.cli.app import main

main()
