"""`python -m robustkt`."""

from robustkt.cli import main

main()
