"""Judge tables again, from the figures that their JSON files hold, and write their pages anew.

    python tools/judge_again.py results

For tables whose run folders are gone, after the rule or the wording of a page has changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mixerflow.experiments import TABLES
from mixerflow.experiments.claims import judge
from mixerflow.experiments.outputs import markdown_text, write_page


def main(root: Path) -> None:
    """Write every ``TABLE/BUDGET.json`` and ``.md`` below `root` again, and ``report.html``."""
    for path in sorted(root.glob("*/*.json")):
        results = json.loads(path.read_bytes())
        if results.get("table") not in TABLES:
            continue
        judge(TABLES[results["table"]], results["columns"])
        path.write_text(json.dumps(results, indent=2) + "\n")
        path.with_suffix(".md").write_text(markdown_text(results))
    print(write_page(root))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
