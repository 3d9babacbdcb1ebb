"""The user's cache folder, and the digest of the package's source, which names what depends on it.

Nothing here imports torch.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from mixerflow.errors import ResourceError

_HERE = Path(__file__).parent


def user_cache() -> Path:
    """Return ``mixerflow`` in the user's cache folder (XDG); a ResourceError without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "mixerflow"
    except RuntimeError as error:
        what, remedy = "there is no home folder", "set XDG_CACHE_HOME to a folder"
        raise ResourceError(what, "the cache", remedy) from error


@functools.cache
def source_sha256() -> str:
    """Return the digest of the package's source, Python and C."""
    digest = hashlib.sha256()
    for path in sorted(each for each in _HERE.rglob("*.*") if each.suffix in (".py", ".c", ".h")):
        digest.update(f"{path.relative_to(_HERE)} ".encode() + path.read_bytes())
    return digest.hexdigest()
