"""Self-contained pages: of a run."""

from mixerflow.report.run import SCORED, Report, make_report

__all__ = ["SCORED", "Report", "make_report"]
