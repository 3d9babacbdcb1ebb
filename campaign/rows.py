"""All rows. A theme's module has a tuple ROWS; a new one is a line here."""

from __future__ import annotations

from campaign import endurance, hostile, images
from campaign.base import Row

ROWS: dict[str, Row] = {row.name: row for row in (*endurance.ROWS, *hostile.ROWS, *images.ROWS)}
