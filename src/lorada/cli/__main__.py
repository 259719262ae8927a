"""``python -m lorada.cli``."""

from lorada.cli import main

main()
