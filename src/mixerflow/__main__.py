"""``python -m mixerflow`` is the command line."""

import sys

from mixerflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
