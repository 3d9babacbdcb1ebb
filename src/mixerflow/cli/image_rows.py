"""CSV files with a row for each image."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterable, Sequence


def csv_of_images(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    files: Sequence[str] = (),
    numbers: Iterable[int] | None = None,
) -> bytes:
    r"""Return a CSV file, UTF-8, whose rows begin with the image's number and, if any, its file.

    Bytes of a file's name that are no UTF-8 become escapes, as in `\xff`.

    Args:
        head: names of the columns after `image` and `file`.
        rows: the values of these columns, for each image.
        files: the file of each image; without any there is no column `file`.
        numbers: the number of each image; 0, 1, ... unless given.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *(["file"] if files else []), *head])
    counted = itertools.count() if numbers is None else iter(numbers)
    for place, (number, row) in enumerate(zip(counted, rows, strict=False)):
        file = (os.fsencode(each) for each in files[place : place + 1])
        writer.writerow(
            [number, *(each.decode("utf-8", "backslashreplace") for each in file), *row]
        )
    return text.getvalue().encode()
