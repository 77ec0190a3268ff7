"""``python -m refusal_lens``: the command line where its script is not on the path."""

from .cli.app import main

main()
