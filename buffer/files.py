"""Durable writes and single ownership: the one place that knows the order write, fsync, rename, fsync.

A rename is atomic but survives a power cut only once its directory is synced, and it may reach the disk
before the bytes it points at unless those are synced first. Source: `man 2 fsync`, `man 2 rename`.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, as `writing`."""
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write what replaces `path`: readers, and a reboot at any point, see the old bytes or the new.

    Missing directories are made. The file is readable by its owner only. After any error, `OSError` for
    one, the old file is untouched.
    """
    make_directory(path.parent)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync(path.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Give a finished directory its final name: `final` appears whole and durable, or not at all.

    Both must be on one filesystem. Raises `FileExistsError` when `final` is taken: what was published
    never changes.
    """
    for folder, _, names in os.walk(temporary, topdown=False):
        for name in names:
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                sync(file)
        sync(Path(folder))
    make_directory(final.parent)
    if final.exists():
        raise FileExistsError(f"{final} is already published")
    try:
        os.rename(temporary, final)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # published in between
            raise FileExistsError(f"{final} is already published") from error
        raise
    sync(final.parent)


def make_directory(path: Path) -> None:
    """Make `path` and its missing parents, durably; only their owner may enter them."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync(path.parent)


def lock(path: Path) -> int | None:
    """Own `path` until the returned descriptor is closed or the process ends; None when another owns it.

    The kernel lets go at any death, SIGKILL included, so a stale lock file means nothing. The file
    holds the owner's process id, for people.
    """
    make_directory(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


@contextlib.contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """A directory of one's own in `folder`, deleted afterwards. Those that the killed have left go first.

    A lock says that its owner lives. Its process id would not: processes of two containers share files, and
    may have the same.
    """
    make_directory(folder)
    clear_scratch(folder, prefix)
    made = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
    while (held := lock(made / "lock")) is None:  # somebody who clears was faster, and deletes it
        made = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(held)


def clear_scratch(folder: Path, prefix: str) -> None:
    """Delete what is left of `scratch` directories whose owners are dead."""
    for left in folder.glob(f"{prefix}*"):
        if (held := lock(left / "lock")) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(held)


def sync(path: Path) -> None:
    """Put what a file holds, or a directory lists, on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
