"""Files of a log: patterns to paths, bytes out of plain, .gz and .zst files, local or anywhere fsspec reaches."""

from __future__ import annotations

import glob as globbing
import io
import re
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
import zstandard
from isal import igzip, igzip_lib

from paceline.errors import DataError

BLOCK = 4 << 20
_DAMAGED: Any = (EOFError, OSError, zlib.error, igzip_lib.IsalError, zstandard.ZstdError)
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"


def natural_key(path: str) -> list[tuple[int, int, str]]:
    """A sort key under which day_2 comes before day_10."""
    return [(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"(\d+)", path) if t]


def expand(pattern: str, base: Path, key: str = "data.days") -> list[str]:
    """The files that `pattern` names, in natural order; relative ones are looked for beside the configuration.

    Raises DataError, naming the key of the job, if there is none.
    """
    if "://" in pattern:
        try:
            fs, path = fsspec.core.url_to_fs(pattern)
            found = sorted(fs.glob(path), key=natural_key) if globbing.has_magic(path) else [path]
            missing = not found or not all(fs.exists(f) for f in found)
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"{key}: {pattern}: cannot be listed: {error}") from error
        if missing:
            raise DataError(f"{key}: no file matches {pattern}; check the URL")
        return [fs.unstrip_protocol(f) for f in found] if globbing.has_magic(pattern) else [pattern]
    path_pattern = Path(pattern).expanduser()
    full = path_pattern if path_pattern.is_absolute() else base / path_pattern
    if not globbing.has_magic(str(full)):
        if not full.exists():
            raise DataError(f"{key}: {full} does not exist; paths are relative to the configuration file")
        if full.is_dir():
            raise DataError(f"{key}: {full} is a directory; name its files, for example {full}/*.gz")
        return [str(full)]
    local = sorted(globbing.glob(str(full), recursive=True), key=natural_key)
    if not local:
        raise DataError(f"{key}: no file matches {full}; paths are relative to the configuration file")
    return local


def open_raw(path: str) -> IO[bytes]:
    """A seekable binary file. Raises DataError if it cannot be opened."""
    try:
        place = fsspec.open(path, "rb")
        opened: Any = place.open()
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error
    # An archive (zip://member::path) is closed when its file system is forgotten: it lives as long as the member.
    weakref.finalize(opened, lambda _: None, place.fs)
    stream: IO[bytes] = opened
    return stream


def blocks(path: str, size: int = BLOCK) -> Iterator[bytes]:
    """The file's bytes, decompressed (by its first bytes, not its name), in blocks of at most `size`.

    Raises DataError for an empty, truncated or damaged file.
    """
    with open_raw(path) as raw:
        head = raw.read(4)
        raw.seek(0)
        if not head:
            raise DataError(f"{path}: the file is empty; take it out of data.days or restore it")
        if head == _PARQUET:
            raise DataError(f"{path}: this is a Parquet file; set data.format: parquet")
        suffix = path.rsplit(".", 1)[-1]
        if suffix == "gz" and not head.startswith(_GZIP):
            raise DataError(f"{path}: not a gzip file (its first bytes are {head.hex()}); was it renamed or cut?")
        if suffix == "zst" and not head.startswith(_ZSTD):
            raise DataError(f"{path}: not a zstd file (its first bytes are {head.hex()}); was it renamed or cut?")
        stream: Any = raw
        open_gzip: Any = igzip.IGzipFile
        if head.startswith(_GZIP):
            stream = open_gzip(fileobj=raw, mode="rb")
        elif head.startswith(_ZSTD):
            # The reader takes a cut frame for the end of the data; `_whole` notices.
            stream = _WholeZstd(raw)
        read = 0
        while True:
            try:
                block: bytes = stream.read(size)
            except _DAMAGED as error:
                raise DataError(
                    f"{path}: cut off or damaged after {read:,} bytes of text ({error}); fetch the file again,"
                    " or take it out of data.days"
                ) from error
            if not block:
                return
            read += len(block)
            yield block


class _WholeZstd(io.RawIOBase):
    """zstd frames one after another; the end of the file inside a frame is an error."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor().decompressobj()
        self._input = b""
        self._output = bytearray()

    def read(self, size: int = -1) -> bytes:
        while len(self._output) < size:
            data = self._input or self._raw.read(1 << 18)
            self._input = b""
            if not data:
                if not self._decompressor.eof:
                    raise EOFError("the last zstd frame is not complete")
                break
            if self._decompressor.eof:
                self._decompressor = zstandard.ZstdDecompressor().decompressobj()
            self._output += self._decompressor.decompress(data)
            if self._decompressor.eof:
                self._input = self._decompressor.unused_data
        block = bytes(self._output[:size])
        del self._output[:size]
        return block
