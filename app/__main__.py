"""`python -m app`: the same as the console script `segcal`."""

from app.cli.main import main

main()
