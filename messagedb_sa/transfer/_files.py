"""Files to write, which appear only once they are complete, and files to read; compressed if the name says so."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, TypeAlias, cast

from messagedb_sa.errors import InvalidArgument

File: TypeAlias = str | os.PathLike[str] | IO[bytes]
"""A path, or an open binary file."""

# The default of gzip, 9, takes several times as long for a few percent.
_GZIP_LEVEL = 6


@contextmanager
def written(file: File) -> Iterator[IO[bytes]]:
    """A file to write to. A path gets the complete file when the block ends, and keeps what it had if the block fails.

    An open file is not closed. What is not a regular file, such as a pipe, is written to directly.
    """
    if not isinstance(file, (str, os.PathLike)):
        checked = _binary(file)
        yield checked
        checked.flush()
        return
    # Through a symbolic link, as open does.
    path = Path(os.path.realpath(file))
    if path.exists() and not path.is_file():
        with path.open("wb") as out, _compressed(out, path) as plain:
            yield plain
        return
    partial = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        with partial.open("wb") as out:
            with _compressed(out, path) as plain:
                yield plain
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.filename == str(partial):
            # The caller knows only the file itself.
            error.filename = str(path)
        raise


@contextmanager
def opened(file: File) -> Iterator[IO[bytes]]:
    """A file to read. An open one is not closed."""
    if not isinstance(file, (str, os.PathLike)):
        yield _binary(file)
    elif is_compressed(file):
        with gzip.open(file, "rb") as plain:
            yield cast("IO[bytes]", plain)
    else:
        with Path(file).open("rb") as plain:
            yield plain


def is_compressed(file: str | os.PathLike[str]) -> bool:
    return Path(file).suffix == ".gz"


@contextmanager
def _compressed(out: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    if is_compressed(path):
        # Without the name and the time, so that the same messages make the same file.
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, out, mtime=0) as plain:
            yield cast("IO[bytes]", plain)
    else:
        yield out


def _binary(file: IO[bytes]) -> IO[bytes]:
    if isinstance(file, io.TextIOBase) or not (hasattr(file, "read") or hasattr(file, "write")):
        reason = "must be a path or a binary file: open(path, 'rb') or open(path, 'wb'), or sys.stdout.buffer"
        raise InvalidArgument("file", file, reason)
    return file
