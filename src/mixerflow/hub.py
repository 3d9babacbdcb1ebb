"""Files of the Hugging Face hub: fetched into its own cache, and pushed (extra `hub`).

Its package finds the token: ``HF_TOKEN``, or what ``hf auth login`` has kept. Each error is one
line. Requests have time limits, and their repetitions an end. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixerflow.errors import ConfigError, MixerFlowError, ResourceError, first_line
from mixerflow.named import HubName, hub_name

_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNREACHED = ("ConnectError", "ConnectionError", "ProxyError", "NetworkError", "ReadError")
_UNREACHED += ("RemoteProtocolError", "LocalEntryNotFoundError", "UnsupportedProtocol")


@dataclass(frozen=True)
class Fetched:
    """Files of a repository, of one commit, in the hub's cache.

    Attributes:
        folder: the folder of that commit.
        revision: the commit, 40 hexadecimal digits.
        files: the names of those files that the repository has.
    """

    folder: Path
    revision: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Pushed:
    """A commit that was pushed.

    Attributes:
        url: address of the repository.
        revision: the commit.
    """

    url: str
    revision: str


def fetch(name: HubName, files: Mapping[str, int]) -> Fetched:
    """Fetch files of a repository, all of the same commit, or find them in the hub's cache.

    Where the hub cannot be reached, the commit that was fetched before is taken, with a warning.

    Args:
        name: the repository and the revision.
        files: the files' names, with the most bytes that each may have. The first must be there;
            others that the repository does not have are left out.

    Raises:
        ConfigError: the hub's package is missing, there is no such repository, revision or first
            file, or it may not be read.
        ResourceError: a file is too large, or the hub cannot be reached, or the cache not written.
    """
    hub, found, folder = _package(str(name)), [], None
    for file, most in files.items():
        with _quietly(), _told(name, file):
            path = _fetched(hub, name, file, most, needed=folder is None)
        if path is None:
            continue
        if folder is None:  # cache/snapshots/COMMIT/FILE
            folder = path.parents[file.count("/")]
            name = HubName(name.repository, folder.name)
        found.append(file)
    assert folder is not None
    return Fetched(folder, folder.name, tuple(found))


def _fetched(hub: Any, name: HubName, file: str, most: int, *, needed: bool) -> Path | None:  # noqa: ANN401
    """Return the path of a file in the hub's cache; None for one that the repository lacks."""
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    revision = name.revision or "main"
    kept = hub.try_to_load_from_cache(name.repository, file, revision=revision)
    there = Path(kept) if isinstance(kept, str) else None
    if _COMMIT.fullmatch(revision) and kept is not None:  # a commit never changes
        if there is None and not needed:
            return None
        if there is not None:
            return _within(there, there.stat().st_size, most)
    try:
        url = hub.hf_hub_url(name.repository, file, revision=revision)
        size = hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT).size
        _within(file, size or 0, most)
        return Path(hub.hf_hub_download(name.repository, file, revision=revision))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        if needed:
            raise
        with contextlib.suppress(EntryNotFoundError):  # notes in the cache that there is none
            hub.hf_hub_download(name.repository, file, revision=revision)
        return None
    except MixerFlowError:
        raise
    except Exception as error:
        if there is None or not _is_unreached(error):
            raise
        commit = there.parents[file.count("/")].name
        if type(error).__name__ != "OfflineModeIsEnabled":  # which somebody asked for
            what = f"{name}: the hub cannot be reached; revision {commit[:12]}, fetched before"
            warnings.warn(f"{what}, is used", stacklevel=2)
        return _within(there, there.stat().st_size, most)


def _within(path: Path | str, size: int, most: int) -> Any:  # noqa: ANN401
    if size > most:
        what = f"a file of {size:,} bytes, of at most {most:,} that are read"
        raise ResourceError(what, path, "weights of this package have less: name others")
    return path


def fetch_file(repository: str, file: str, *, most: int) -> Path:
    """Fetch one file of a repository's newest commit; see `fetch`."""
    name = hub_name(f"hf://{repository}")
    assert name is not None
    return fetch(name, {file: most}).folder / file


def require_token(name: HubName) -> None:
    """Raise a ConfigError where the hub's package, or a token of the hub, is missing."""
    if _package(str(name)).get_token() is None:
        raise ConfigError("no token of the hub", name, "run `hf auth login`, or set HF_TOKEN")


def push(
    name: HubName,
    files: Mapping[str, bytes],
    message: str,
    *,
    known: tuple[str, ...],
    private: bool = False,
) -> Pushed:
    """Write files into a repository in one commit; the repository is made if it is missing.

    Args:
        name: the repository; its revision is not used.
        files: contents by name.
        message: the commit's message.
        known: names of which the repository's files are removed, if they are not in `files`.
        private: whether a repository that is made is private.

    Raises:
        ConfigError: the hub's package or a token is missing, or the token may not write there.
        ResourceError: the hub cannot be reached, or fails.
    """
    require_token(name)
    hub = _package(str(name))
    with _quietly(), _limited(hub), _told(name, ""):
        api = hub.HfApi(library_name="mixerflow")
        url = api.create_repo(name.repository, private=private or None, exist_ok=True)
        there = set(api.list_repo_files(name.repository))
        stale = sorted((there & set(known)) - files.keys())
        operations = [hub.CommitOperationAdd(file, data) for file, data in files.items()]
        operations += [hub.CommitOperationDelete(file) for file in stale]
        commit = api.create_commit(name.repository, operations, commit_message=message)
        return Pushed(str(url), commit.oid)


def _package(where: str) -> Any:  # noqa: ANN401
    try:
        import huggingface_hub
    except ImportError as error:
        remedy = "pip install 'mixerflow[hub]'"
        raise ConfigError("the hub's package is missing", where, remedy) from error
    return huggingface_hub


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the package's bars and log off the terminal, in a ``with`` block."""
    from huggingface_hub import utils

    shown, log = not utils.are_progress_bars_disabled(), logging.getLogger("huggingface_hub")
    level = log.level
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        if shown:
            utils.disable_progress_bars()
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)
            if shown:
                utils.enable_progress_bars()


@contextlib.contextmanager
def _limited(hub: Any) -> Iterator[None]:  # noqa: ANN401
    """Give the package's session a time limit for each answer, in a ``with`` block."""
    from huggingface_hub import constants

    session = hub.get_session()
    before = session.timeout
    session.timeout = 3.0 * constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        yield
    finally:
        session.timeout = before


@contextlib.contextmanager
def _told(name: HubName, file: str) -> Iterator[None]:
    """Turn what the hub's package raises, in a ``with`` block, into an error of one line."""
    try:
        yield
    except MixerFlowError:
        raise
    except Exception as error:  # of the package, its HTTP client, the cache's file system
        raise _as_error(error, name, file) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _is_unreached(error: BaseException) -> bool:
    """Whether the hub did not answer, or only that it cannot."""
    kinds = {kind.__name__ for each in _causes(error) for kind in type(each).__mro__}
    return _status(error) >= 500 or bool(kinds & {*_UNREACHED, "TimeoutException"})


def _status(error: BaseException) -> int:
    """Return the status of the hub's answer to a request; 0 without one."""
    answers = (getattr(each, "response", None) for each in _causes(error))
    return next((int(each.status_code) for each in answers if each is not None), 0)


def _as_error(error: Exception, name: HubName, file: str) -> MixerFlowError:
    kinds = {kind.__name__ for each in _causes(error) for kind in type(each).__mro__}
    status, repository = _status(error), name.plain
    sign_in = "run `hf auth login`, or set HF_TOKEN"
    if "OfflineModeIsEnabled" in kinds:
        remedy = "unset HF_HUB_OFFLINE"
        return ResourceError("not among what was fetched from the hub before", name, remedy)
    if "TimeoutException" in kinds:
        return ResourceError("the hub does not answer", name, "check the network and try again")
    if "GatedRepoError" in kinds:
        remedy = f"ask for access on its page; to show who you are, {sign_in}"
        return ConfigError("its owner grants access one by one", repository, remedy)
    if "RevisionNotFoundError" in kinds:
        return ConfigError("no such revision on the hub", name, "see its commits on the hub")
    if "EntryNotFoundError" in kinds and status == 404:
        return ConfigError(f"no {file} in this repository", name, "name one that has it")
    if status == 401 and "RepositoryNotFoundError" not in kinds:
        return ConfigError("the hub refuses the token", repository, sign_in)
    if status in (401, 404):
        remedy = f"check the name; if it is private, {sign_in}"
        return ConfigError("no such repository on the hub", repository, remedy)
    if status == 403:
        remedy = "use a token that may, of its owner or of a member"
        return ConfigError("the token may not do this there", repository, remedy)
    if status == 429:
        return ResourceError("too many requests to the hub", name, "wait some minutes")
    if status:
        what = f"the hub answers {status} ({first_line(error)[:200]})"
        remedy = "try again later" if status >= 500 else "check the name and the settings"
        return ResourceError(what, name, remedy)
    if kinds & set(_UNREACHED):
        remedy = "check the network, or HF_ENDPOINT"
        return ResourceError("the hub cannot be reached", name, remedy)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
        remedy = "free some space, or set HF_HUB_CACHE to a folder that can be written"
        return ResourceError(f"the hub's cache cannot be written ({error.strerror})", name, remedy)
    what = f"the hub's package fails ({first_line(error)[:200]})"
    by_hand = "fetch the files" if file else "push the folder"
    return ResourceError(what, name, f"try again, or {by_hand} by hand")
