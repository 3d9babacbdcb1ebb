"""The paper's tables: rows as data, run at a budget, with the paper's claims tested."""

from mixerflow.experiments.results import outcome
from mixerflow.experiments.table import BUDGETS, RUN_TIME, Budget, Cell, Claim
from mixerflow.experiments.tables import TABLES, table

__all__ = ["BUDGETS", "RUN_TIME", "TABLES", "Budget", "Cell", "Claim", "outcome", "table"]
