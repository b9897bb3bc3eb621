"""`python -m polarcredits`."""

from polarcredits.cli import main

main()
