"""The paper's tables: rows as data, run at a budget, with the paper's claims tested."""

from mixerflow.experiments.claims import outcome
from mixerflow.experiments.images import BUDGETS, RUN_TIME, Budget
from mixerflow.experiments.table import Cell, Claim
from mixerflow.experiments.tables import TABLES, table

__all__ = ["BUDGETS", "RUN_TIME", "TABLES", "Budget", "Cell", "Claim", "outcome", "table"]
