"""All rows. A theme's module has a tuple ROWS; a new one is a line here."""

from __future__ import annotations

from campaign import (
    archives,
    commands,
    endurance,
    files,
    hostile,
    images,
    processes,
    saving,
    scoring,
)
from campaign.base import Row

_THEMES = (saving, files, commands, processes, endurance, hostile, images, scoring, archives)
ROWS: dict[str, Row] = {row.name: row for theme in _THEMES for row in theme.ROWS}
