"""Code the images of results anew, after another version of a codec or other settings of ours.

    python tools/code_again.py results cifar10:PATH mnist:PATH fashion-mini

Evaluations (`codecs`) and tables (WebP of `yardsticks`) that scored the first images of these sets,
or all, get the new figures; then run tools/judge_again.py, for the pages of the tables.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixerflow import data
from mixerflow.data import Images
from mixerflow.evaluate.codecs import codec_rows
from mixerflow.pictures import codec_bits


def code_again(result: dict[str, Any], images: Images, files: Callable[[int], float]) -> bool:
    """Put new figures into an evaluation or a table of these images; return whether it is one."""
    if result.get("dataset_id") == images.dataset_id and result.get("codecs"):
        scored = images.first(result["images"])
        count = result.get("codec_sample", {}).get("images", len(scored))
        rows = codec_rows(scored, count=count, threads=2)
        result["codecs"] = {row.name: row.bits_per_dim for row in rows}
        return True
    own = [c for c in result.get("columns", []) if "WebP" in c.get("yardsticks", ())]
    own = [c for c in own if c["data"] == [images.dataset_id]]
    for column in own:
        (scored,) = column["images"]
        column["yardsticks"]["WebP"] = files(int(re.fullmatch(r"test.*: (\d+)", scored)[1]))
    return bool(own)


def main(root: Path, names: list[str]) -> None:
    """Write each file again whose images are those of one of the names."""
    for name in names:
        images = data.load(name).test
        files = functools.cache(lambda n, x=images.pixels: codec_bits(x[:n], "webp", sheet=False))
        for path in sorted(root.glob("*/*.json")):
            result = json.loads(path.read_bytes())
            if isinstance(result, dict) and code_again(result, images, files):
                path.write_text(json.dumps(result, indent=2) + "\n")
                print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
