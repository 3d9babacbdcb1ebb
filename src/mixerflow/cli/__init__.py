"""The command line: ``mixerflow COMMAND ...``. Nothing here imports torch before it has to."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; `mixerflow.cli.commands` has the commands.

    Without `arguments`, the program's own are taken, and with them its signals, before anything
    that takes time is imported.
    """
    if arguments is None:
        from mixerflow.signals import take_signals

        take_signals()
    from mixerflow.cli.commands import run

    return run(arguments)
