"""The adapter store: how a release gets from the learner's machine to the servers' machines.

    learner's state/adapters ─put─► url/000012-3f9c0a1b2c4d/… ─fetch─► a server's state/adapters

The local directory stays what everything works with. The store is any file system that fsspec speaks: a
bucket, or a shared disk. A manifest is written last and deleted first, and a reader checks every hash before
it gives a directory its name; so neither a half-written nor a half-deleted release is ever taken.
"""

import errno
import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from fsspec.core import url_to_fs

from buffer.adapters import MANIFEST, AdapterInvalid, directory_of, read_manifest, verify_files
from buffer.config import AdaptersConfig, ConfigError
from buffer.files import clear_scratch, make_directory, publish_directory, scratch
from buffer.log import BufferError
from buffer.records import Release
from buffer.rounds import Alias, Round

logger = logging.getLogger(__name__)

KEPT = 2
"""Earlier live policies that a rollback finds at once."""

Reason = Literal["missing", "damaged", "denied", "full", "unreachable", "unreadable"]

HINTS: dict[Reason, str] = {
    "missing": "check that learner and servers have the same [buffer.adapters] url; old releases are"
    " deleted; a learner that starts puts back what is needed and lies on its machine",
    "damaged": "it was changed in the store or on the way: compare it with the learner's state/adapters",
    "denied": "give this machine's credentials access to [buffer.adapters] url",
    "full": "make room",
    "unreachable": "check that the store of [buffer.adapters] url can be reached from here",
    "unreadable": "see that this machine's disk is well, that the process may read state/adapters, and how"
    " many files it may open (`ulimit -n`)",
}


class StoreUnavailable(BufferError):
    """The store did not give or take a release. It says nothing about the release itself: try again."""

    code = "store_unavailable"

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, HINTS[reason])
        self.reason: Reason = reason


def needed(alias: Alias, rounds: Sequence[Round], rejected: Collection[int]) -> set[int]:
    """The versions that are kept wherever they are: live, those before it, what may become live, now or after
    a move back, and what the round under way starts from."""
    been = {move.version for move in alias.moves}
    made = {r.release.version for r in rounds if r.release is not None}
    parents = {r.planned.parent for r in rounds if r.ended is None}
    return {*alias.recent(1 + KEPT), *(made - been - set(rejected)), *parents, alias.previous or 0}


def beyond(releases: Collection[Release], newest: int, keep: Collection[int]) -> list[Release]:
    """Those that are neither kept nor among the newest."""
    latest = sorted((release.version for release in releases), reverse=True)[:newest]
    return [release for release in releases if release.version not in {*keep, *latest}]


class AdapterStore:
    """The adapter directory `root` of one machine, and the store behind it where one is configured.

    Used by one thread per release at a time. Raises `StoreUnavailable` unless said otherwise.
    """

    def __init__(self, root: Path, config: AdaptersConfig) -> None:
        """Opens nothing yet. Raises `ConfigError` for a URL that cannot be used here."""
        self.root = root
        self.keep = config.keep
        self._fs: Any = None
        if config.url is None:
            return
        options = {"auto_mkdir": True} if config.url.startswith(("file:", "local:")) else {}
        try:
            self._fs, self._base = url_to_fs(config.url, **options, **config.options)
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigError(
                f"[buffer.adapters] url {config.url}: {error}",
                "correct it, or install what fsspec needs for it: s3fs for s3://, gcsfs for gs://",
            ) from error

    @property
    def shared(self) -> bool:
        """Whether there is a store behind the local directory."""
        return self._fs is not None

    def here(self, release: Release) -> bool:
        """Whether the release lies on this machine. Raises `AdapterInvalid` for an impossible name."""
        return directory_of(self.root, release).is_dir()

    def put(self, release: Release) -> None:
        """Copy a release that lies here into the store; nothing where it is there already.

        Raises `AdapterInvalid`, `OSError` when what lies here is not the release.
        """
        directory = directory_of(self.root, release)
        manifest = verify_files(directory, release)
        if not self.shared:
            return
        with self._reaching("put", release):
            with suppress(FileNotFoundError, AdapterInvalid):
                read_manifest(self._fs.cat_file(self._at(release, MANIFEST)), release)
                return
            for name in [*manifest.files, MANIFEST]:
                self._fs.put_file(str(directory / name), self._at(release, name))

    def fetch(self, release: Release) -> None:
        """Have the release in the local directory, every hash checked. Raises `AdapterInvalid` as `here`."""
        if self.here(release):
            return
        if not self.shared:
            raise StoreUnavailable(
                f"{release.directory} is not in {self.root}, and no [buffer.adapters] url is set", "missing"
            )
        directory = directory_of(self.root, release)
        with self._reaching("fetch", release):
            raw = self._fs.cat_file(self._at(release, MANIFEST))
            manifest = read_manifest(raw, release)
            # server and learner of one state directory may both be at it
            with scratch(self.root, f".{release.directory}.fetched") as folder:
                fetched = folder / release.directory
                make_directory(fetched)
                for name in manifest.files:
                    self._fs.get_file(self._at(release, name), str(fetched / name))
                (fetched / MANIFEST).write_bytes(raw)
                verify_files(fetched, release)
                with suppress(FileExistsError):
                    publish_directory(fetched, directory)

    def remove(self, release: Release) -> None:
        """Delete a release that must not be served from here and from the store."""
        directory_of(self.root, release)  # a name that no release has is not the store's fault
        if self.shared:
            with self._reaching("delete", release):
                self._delete(release)
        self._delete_here(release)

    def sweep(self, releases: Collection[Release], keep: Collection[int]) -> None:
        """Delete from this machine those of the log's `releases` that nothing keeps.

        Where a store has them, at once. Without one it is for good: the newest stay as well, and only the
        process that knows what vLLM holds may do it. What the log does not name is left alone: it may be on
        its way into it.
        """
        for release in beyond(releases, 0 if self.shared else self.keep, keep):
            clear_scratch(self.root, f".{release.directory}.fetched")
            shutil.rmtree(self._deleted(release), ignore_errors=True)
            self._delete_here(release)

    def trim(self, releases: Sequence[Release], keep: Collection[int]) -> None:
        """Delete from the store those of the log's `releases` that are neither kept nor among the newest."""
        if not self.shared:
            return
        old = beyond(releases, self.keep, keep)
        if not old:
            return
        with self._reaching("list", old[0]):
            self._fs.invalidate_cache()
            there = {path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._base, detail=False)}
        for release in old:
            if release.directory in there:
                with self._reaching("delete", release):
                    self._delete(release)
                logger.info("deleted %s from the adapter store", release.directory)

    def _delete_here(self, release: Release) -> None:
        """Under another name first: cut short, it leaves no half of a release under its own."""
        if self.here(release):
            shutil.rmtree(directory_of(self.root, release).rename(self._deleted(release)))
            logger.info("deleted %s from this machine", release.directory)

    def _delete(self, release: Release) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._at(release, MANIFEST))
        with suppress(FileNotFoundError):
            self._fs.rm(self._at(release), recursive=True)

    def _at(self, release: Release, name: str = "") -> str:
        return f"{self._base.rstrip('/')}/{directory_of(Path(), release)}/{name}".rstrip("/")

    def _deleted(self, release: Release) -> Path:
        return self.root / f".{directory_of(Path(), release)}.deleted"

    @contextmanager
    def _reaching(self, what: str, release: Release) -> Iterator[None]:
        """The boundary to fsspec: its file systems raise errors of any kind."""
        try:
            yield
        except Exception as error:
            why = str(error) or type(error).__name__
            message = f"the adapter store did not {what} {release.directory}: {why}"
            raise StoreUnavailable(message, _reason(error)) from error


def _reason(error: Exception) -> Reason:
    match error:
        case AdapterInvalid():
            return "damaged"
        case FileNotFoundError():
            return "missing"
        case PermissionError():
            return "denied"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return "full"
        case _:
            return "unreachable"
