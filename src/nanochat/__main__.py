"""`python -m nanochat` is the `nanochat` command."""

from nanochat.cli import main

main()
