"""The files of a record: written whole or not at all, read without pickle, known by their marks.

Every file appears by write-to-temporary, fsync, rename, and holds a SHA-256 of all else in it, so that a bit that
flips is noticed when it is read. Whatever the disk says ends in one `RecordError`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pyarrow
import safetensors
import safetensors.numpy
from pyarrow import parquet

__all__ = [
    "RecordError", "check_target", "is_file", "locked", "names_in", "read_bytes", "read_json", "read_parquet",
    "read_tensors", "sealed", "write_atomic", "write_json", "write_parquet", "write_tensors",
]  # fmt: skip

_CHECKSUM = "sha256"
# Where pandas from 2.1 on keeps a table's ``attrs``; what is older does not keep them.
_ATTRS = b"PANDAS_ATTRS"
_ORDER = "order"
# Stands where a table's checksum will be while it is computed.
_BLANK = b"checksum".ljust(64, b"-")
_FOUND = re.compile(rb'"sha256": ?"([^"]{64})"')
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RecordError(RuntimeError):
    """A record cannot be read, written or continued; the message says which file and what to do."""


def _why(error: OSError) -> str:
    if error.errno in _FULL:
        return "there is no space left"
    return error.strerror or str(error) or type(error).__name__


def _not_written(path: Path, error: OSError) -> RecordError:
    room = "make room and " if error.errno in _FULL else ""
    return RecordError(
        f"{path} could not be written: {_why(error)}. What was saved before is kept; {room}run the same command "
        "again to go on."
    )


# -- writing ------------------------------------------------------------------------------------------------------


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file's content, whole or not at all. Its folder is made, but not the folder's own.

    Raises
    ------
    RecordError : whatever the disk says; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename itself durable, where a folder can be synchronised."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such thing
            raise
    finally:
        with suppress(OSError):
            os.close(handle)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object for `write_json` with a checksum of the rest, which `read_json` looks at.

    >>> sealed({"step": 7})["sha256"][:8]
    '23344736'
    """
    rest = {name: part for name, part in value.items() if name != _CHECKSUM}
    return {**rest, _CHECKSUM: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """A table, its ``attrs`` among its metadata, with a checksum of the file."""
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    attrs = json.dumps({**frame.attrs, _CHECKSUM: _BLANK.decode()})
    sink = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, _ATTRS: attrs}), sink, compression="zstd")
    content = sink.getvalue()
    write_atomic(path, content.replace(_BLANK, hashlib.sha256(content).hexdigest().encode()))


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Arrays in safetensors form, with their order, which the form does not keep, and a checksum of all of it."""
    arrays = {name: np.asarray(a, order="C") for name, a in arrays.items()}  # a single number stays one
    metadata = {**metadata, _ORDER: json.dumps(list(arrays))}
    write_atomic(path, safetensors.numpy.save(arrays, {**metadata, _CHECKSUM: _digest(arrays, metadata)}))


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        a = arrays[name]
        digest.update(f"{name} {a.dtype.str} {a.shape}".encode())
        digest.update(np.ascontiguousarray(a).view(np.uint8).data if a.size else b"")
    if metadata is not None:
        digest.update(json.dumps(dict(metadata), sort_keys=True).encode())
    return digest.hexdigest()


# -- reading ------------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """Raises RecordError: it is missing, or the disk does not give it."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RecordError(f"{path} is missing.") from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {_why(error)}.") from None


def is_file(path: Path) -> bool:
    """Raises RecordError: the disk does not say."""
    try:
        return path.is_file()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {_why(error)}.") from None


def names_in(folder: Path) -> list[str]:
    """Names of what is in a folder; none if there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RecordError(f"{folder} cannot be read: {_why(error)}.") from None


def read_json(path: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object that has the names `needed`, without its checksum.

    Raises
    ------
    RecordError : no such file, no such object, or altered.
    """
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged ({error}).") from None
    if not isinstance(value, dict) or any(key not in value for key in needed):
        raise RecordError(f"{path} is damaged: it is no object with {', '.join(needed) or 'names'}.")
    if (_CHECKSUM in value or "format" in value) and value != sealed(value):  # what says its format is always sealed
        raise _altered(path)
    value.pop(_CHECKSUM, None)
    return value


def read_parquet(path: Path) -> pd.DataFrame:
    """A table; ``attrs`` has ``sha256`` if the file holds a checksum.

    Raises
    ------
    RecordError : no such file, no table, or altered.
    """
    content = read_bytes(path)
    if found := _FOUND.findall(content):
        written = content.replace(found[0], _BLANK)
        if hashlib.sha256(written).hexdigest().encode() != found[0]:
            raise _altered(path)
    try:
        frame = pd.read_parquet(io.BytesIO(content))
        frame.attrs = json.loads((parquet.read_schema(io.BytesIO(content)).metadata or {}).get(_ATTRS, "{}"))
        return frame
    except (OSError, ValueError, KeyError, TypeError, MemoryError, pyarrow.ArrowException) as error:
        raise RecordError(f"{path} is damaged ({' '.join(str(error).split())}).") from None


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays, in the order in which they were written, and metadata of a file `write_tensors` wrote.

    Raises
    ------
    RecordError : not such a file, cut short, or altered.
    """
    content = read_bytes(path)
    try:
        arrays = safetensors.numpy.load(content)  # in random order
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise RecordError(f"{path} is damaged or no safetensors file ({error}).") from None
    checksum = metadata.pop(_CHECKSUM, None)
    # an earlier version had a checksum of the arrays alone
    if checksum not in (_digest(arrays, metadata), _digest(arrays)):
        raise _altered(path)
    order = json.loads(metadata.pop(_ORDER, "[]")) or sorted(arrays)  # an earlier version kept none
    return {name: arrays[name] for name in order}, metadata


def _altered(path: Path) -> RecordError:
    return RecordError(f"{path} is damaged: its content does not match its checksum.")


# -- folders ------------------------------------------------------------------------------------------------------


def check_target(folder: Path) -> None:
    """Refuse a folder that a run may not be written into.

    Raises
    ------
    RecordError : it is neither new, nor empty, nor a record.
    """
    try:
        names = os.listdir(folder)
    except OSError:  # none yet; what else is wrong with it, `locked` says
        return
    if {"config.json", "provenance.json", "state.safetensors"} & set(names):
        return
    foreign = sorted(name for name in names if name != ".lock" and not _TEMPORARY.fullmatch(name))
    if foreign:
        raise RecordError(
            f"{folder} is no record, but holds other things ({foreign[0]!r} for one); "
            "choose a folder that is new, empty or a record."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone; the lock goes with the process, however it ends. What a killed
    process left half written is removed, and so is a folder in which nothing came to be.

    Raises
    ------
    RecordError : another process holds it, or it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{folder} cannot be made: {_why(error)}.") from error
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RecordError(f"{folder} is in use: another process is training this run.") from None
    except OSError as error:
        raise RecordError(f"{folder} cannot be written: {_why(error)}.") from error
    try:
        _remove_temporaries(folder)
        yield
    except OSError as error:
        raise _not_written(Path(error.filename or folder), error) from error
    finally:
        with suppress(OSError):
            if os.listdir(folder) == [".lock"]:
                (folder / ".lock").unlink()
                folder.rmdir()
        with suppress(OSError):
            lock.release()


def _remove_temporaries(folder: Path) -> None:
    for where in (folder, folder / "checkpoints"):
        with suppress(OSError):
            for name in os.listdir(where):
                if _TEMPORARY.fullmatch(name):
                    (where / name).unlink(missing_ok=True)
