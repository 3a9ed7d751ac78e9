"""Where the program starts: `robustkt`, and `python -m robustkt`."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130


def main() -> None:
    """The command line; Ctrl-C while it is still being read in says so instead of where it was."""
    try:
        from robustkt.cli import prepared

        command = prepared()
    except KeyboardInterrupt:
        print("error: interrupted before anything was begun", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # modules are half read in: nothing of theirs can be asked to clean up
    command()


if __name__ == "__main__":
    main()
