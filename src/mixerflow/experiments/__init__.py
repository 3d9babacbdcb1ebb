"""The paper's tables: rows as data, run at a budget, with the paper's claims tested."""

from mixerflow.experiments.claims import Outcome, outcome
from mixerflow.experiments.runs import MEASURES, Run
from mixerflow.experiments.table import (
    BUDGETS,
    Budget,
    Cell,
    Claim,
    Column,
    PublishedResult,
    Row,
    Setup,
    Table,
)
from mixerflow.experiments.tables import TABLES, table

__all__ = [
    "BUDGETS",
    "MEASURES",
    "TABLES",
    "Budget",
    "Cell",
    "Claim",
    "Column",
    "Outcome",
    "PublishedResult",
    "Row",
    "Run",
    "Setup",
    "Table",
    "outcome",
    "table",
]
