"""The command line: ``mixerflow COMMAND ...``. Nothing here imports torch before it has to."""

from mixerflow.cli.main import main

__all__ = ["main"]
