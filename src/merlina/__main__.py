"""`python -m merlina`: the same as the command `merlina`."""

from merlina.cli.main import app

app()
