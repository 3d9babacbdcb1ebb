"""Self-contained pages: of a run, and of the outliers among images."""

from mixerflow.report.outliers import make_outliers_page
from mixerflow.report.run import SCORED, Report, make_report

__all__ = ["SCORED", "Report", "make_outliers_page", "make_report"]
