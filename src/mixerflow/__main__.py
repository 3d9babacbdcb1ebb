"""``python -m mixerflow`` is the command line."""

import sys

from mixerflow.cli import main

sys.exit(main())
