"""The user's cache folder, its files, and the digest of the source, which names what depends on it.

A file begins with the SHA-256 of what follows, after a key: damage shows.

Nothing here imports torch.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from mixerflow.errors import ResourceError
from mixerflow.temporary import sweep, temporary_path

_HERE = Path(__file__).parent
_DIGEST = hashlib.sha256().digest_size


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


def with_digest(content: bytes, key: bytes = b"") -> bytes:
    """Return content after the SHA-256 of `key` and the content."""
    return hashlib.sha256(key + content).digest() + content


def without_digest(data: bytes, key: bytes = b"") -> bytes | None:
    """Return the content that `with_digest` was given; None if the data or the key differ."""
    content = data[_DIGEST:]
    return content if data == with_digest(content, key) else None


def store(path: Path, content: bytes, key: bytes = b"") -> None:
    """Write a file with its digest, at once; its folder is made, and leftovers there removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(with_digest(content, key))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
