"""The only place that touches fsspec: local folders and ``s3://`` behave the same.

Writing is beside-then-rename locally and one upload on an object store, so a reader never sees half a file;
``create_only`` is the primitive of every commit: exactly one of two writers wins.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from applecider_batch.errors import StorageError

# A file larger than its user may write is a quota of another kind.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Attempts at a request; the waits between them grow to 15 s.
S3_ATTEMPTS = 8
_PASSING = ("SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed")
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Store:
    """A folder at an fsspec URL.

    Parameters
    ----------
    url : str or Path
        A local path, ``file://`` or any fsspec URL such as ``s3://bucket/prefix``.
    storage_options : mapping, optional
        Given to fsspec (``endpoint_url``, ``anon``, ``key`` …).
    """

    def __init__(self, url: str | Path, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = str(url).rstrip("/") or "/"
        self.storage_options = dict(storage_options or {})

    def __reduce__(self) -> tuple[Any, ...]:
        # The process that gets it may run in another folder.
        return (Store, (absolute(self.url), self.storage_options))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        options = with_patience(self.url, self.storage_options)
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url, **options)
        except (ValueError, ImportError) as error:
            raise StorageError(f"The URL '{self.url}' cannot be opened: {error}.") from error
        return filesystem, root.rstrip("/") or "/"

    @property
    def fs(self) -> Any:
        """The fsspec file system."""
        return self._opened[0]

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine."""
        return "file" in _protocols(self.fs)

    def path(self, rel: str = "") -> str:
        """Full path of a relative name, as the file system wants it."""
        return f"{self._opened[1]}/{rel}" if rel else self._opened[1]

    def join(self, rel: str) -> Store:
        """A folder below this one; it shares the open file system."""
        below = Store(f"{self.url}/{rel}", self.storage_options)
        below.__dict__["_opened"] = (self.fs, self.path(rel))
        return below

    def exists(self, rel: str = "") -> bool:
        """Whether a file or folder of that name is there."""
        with _explained(self, rel, "looked up"):
            return bool(self.fs.exists(self.path(rel)))

    def size(self, rel: str) -> int:
        """Size of a file in bytes."""
        with _explained(self, rel, "looked up"):
            return int(self.fs.size(self.path(rel)))

    def modified(self) -> float | None:
        """When a file of this folder was last written, in seconds since 1970; None where none is there.

        Of an empty local folder, when it was made.
        """
        with _explained(self, "", "looked up"):
            self.fs.invalidate_cache()
            paths = self.fs.find(self.path()) or ([self.path()] if self.is_local else [])
            try:
                return max((self.fs.modified(path).timestamp() for path in paths), default=None)
            except FileNotFoundError:  # somebody removes them
                return None

    def ls(self, rel: str = "") -> list[str]:
        """Sorted names directly below a folder; none when it is absent."""
        with _explained(self, rel, "listed"):
            try:
                self.fs.invalidate_cache(self.path(rel))
                entries = self.fs.ls(self.path(rel), detail=False)
            except FileNotFoundError:
                return []
        names = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries}
        own = self.path(rel).rsplit("/", 1)[-1]
        return sorted(
            name for name in names if name and not (name == own and len(entries) == 1 and self._is_file(rel))
        )

    def _is_file(self, rel: str) -> bool:
        return bool(self.fs.isfile(self.path(rel)))

    def walk(self, rel: str = "") -> list[str]:
        """Sorted relative names of all files below a folder."""
        with _explained(self, rel, "listed"):
            self.fs.invalidate_cache()
            found = self.fs.find(self.path(rel))
        root = self.path()
        return sorted(name[len(root) :].lstrip("/") for name in found)

    def read_bytes(self, rel: str) -> bytes:
        """A file's bytes; FileNotFoundError when it is absent."""
        with _explained(self, rel, "read"):
            return bytes(self.fs.cat_file(self.path(rel)))

    def read_json(self, rel: str) -> Any:
        """A JSON file's value."""
        try:
            return json.loads(self.read_bytes(rel))
        except ValueError as error:
            raise StorageError(f"The file '{self.url}/{rel}' is not JSON: {error}.") from error

    def write_atomic(self, rel: str, data: bytes) -> None:
        """Write a whole file so that readers see the old or the new one, never a part."""
        with self.open_output(rel) as out:
            out.write(data)

    def write_json_atomic(self, rel: str, value: Any) -> None:
        """Write a JSON file (sorted keys, indented)."""
        self.write_atomic(rel, json_bytes(value))

    def create_only(self, rel: str, data: bytes) -> None:
        """Write a file that must not be there yet; exactly one of several writers succeeds.

        Raises
        ------
        FileExistsError
            If it is already there.
        """
        with _explained(self, rel, "written"):
            if self.is_local:
                self._link_new(rel, data)
            else:
                try:
                    with _room(self, rel):
                        self.fs.pipe_file(self.path(rel), data, mode="create")
                except FileExistsError:
                    # A request whose answer got lost is sent again, and then finds its own bytes.
                    if bytes(self.fs.cat_file(self.path(rel))) != data:
                        raise
                self.fs.invalidate_cache()

    def _link_new(self, rel: str, data: bytes) -> None:
        target = Path(self.path(rel))
        with _room(self, rel):
            target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with open(beside, "xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.link(beside, target)
        finally:
            beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def open_output(self, rel: str) -> Iterator[IO[bytes]]:
        """A binary file to write; it appears under its name only when the block ends without an error."""
        with _explained(self, rel, "written"):
            if self.is_local:
                target = Path(self.path(rel))
                with _room(self, rel):
                    target.parent.mkdir(parents=True, exist_ok=True)
                beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
                try:
                    with open(beside, "xb") as out:
                        yield out
                        out.flush()
                        os.fsync(out.fileno())
                    os.replace(beside, target)
                finally:
                    beside.unlink(missing_ok=True)
            else:
                out = self.fs.open(self.path(rel), "wb")
                try:
                    yield out
                except BaseException:
                    _abandon(out)
                    raise
                with _room(self, rel):
                    out.close()
                self.fs.invalidate_cache()

    def open_input(self, rel: str) -> Any:
        """A seekable binary file to read, fit for pyarrow (memory-mapped when local)."""
        with _explained(self, rel, "read"):
            if self.is_local:
                import pyarrow as pa

                return pa.memory_map(self.path(rel), "r")
            return self.fs.open(self.path(rel), "rb", cache_type="readahead")

    def open_ranges(self, rel: str, size: int) -> Any:
        """A file of known size of which parts are wanted: what is asked for is fetched, and nothing else.

        For a reader that joins its reads itself (pyarrow with ``pre_buffer``). A local file is not
        memory-mapped, because mapped pages would count as this process's memory.
        """
        with _explained(self, rel, "read"):
            if self.is_local:
                import pyarrow as pa

                return pa.OSFile(self.path(rel))
            opened = self.fs.open(self.path(rel), "rb", cache_type="none", size=size)
            # Or the file system asks for them, once per open.
            opened.details = {"name": self.path(rel), "size": size, "type": "file"}
            return opened

    def delete(self, rel: str, *, recursive: bool = False) -> None:
        """Remove a file or, with ``recursive``, a folder; nothing happens when it is absent."""
        with _explained(self, rel, "removed"), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(rel), recursive=recursive)


def store_of(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Store, str]:
    """The folder of a file, and the file's name in it."""
    folder, _, name = url.rstrip("/").rpartition("/")
    return Store(folder or ("/" if url.startswith("/") else "."), storage_options), name


def absolute(url: str | Path) -> str:
    """A local path as an absolute one, for processes that run in another folder; a URL as it is."""
    text = str(url)
    return text if "://" in text or "::" in text else os.path.abspath(text)


def with_patience(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for an S3 store with which failed requests are sent again, at growing intervals.

    5xx, "slow down", timeouts, lost connections and answers that break off; what the user gave goes first.
    """
    if not url.startswith(("s3://", "s3a://")):
        return dict(options)
    from s3fs.core import S3FileSystem, set_custom_error_handler

    set_custom_error_handler(_is_passing)
    S3FileSystem.retries = S3_ATTEMPTS
    given = dict(options.get("config_kwargs") or {})
    config = {
        "retries": {"mode": "standard", "total_max_attempts": 5},
        "connect_timeout": 10,
        "read_timeout": 60,
        **given,
    }
    return {**options, "config_kwargs": config}


def _is_passing(error: BaseException) -> bool:
    """Whether a failed request is worth sending again."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return bool(status >= 500) or answer.get("Error", {}).get("Code") in _PASSING
    return isinstance(error, ConnectionError | TimeoutError)


def is_of_storage(error: BaseException) -> bool:
    """Whether the storage raised it, so that it says nothing about what is in a file.

    Damaged bytes make a reader raise an OSError without a number that is of no kind of its own.
    """
    if isinstance(error, OSError):
        return error.errno is not None or type(error) is not OSError
    return type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp"))


def json_bytes(value: Any) -> bytes:
    """A JSON document with sorted keys, indented, ending in a newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _abandon(out: Any) -> None:
    """Drop an upload: no final commit now, nor when the object is collected."""
    with contextlib.suppress(Exception):
        out.discard()
    with contextlib.suppress(AttributeError):
        out.closed = True


@contextlib.contextmanager
def _explained(store: Store, rel: str, verb: str) -> Iterator[None]:
    """Turn the storage's refusals into one sentence; absence stays FileNotFoundError."""
    name = f"{store.url}/{rel}" if rel else store.url
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"No space left: '{name}' could not be {verb}.",
                hint="Nothing committed is lost; free some space and run the same command again.",
            ) from error
        if error.errno in _DENIED or isinstance(error, PermissionError):
            raise StorageError(
                f"Permission denied: '{name}' could not be {verb}.", hint="Choose a place you may write to."
            ) from error
        if error.errno == errno.ENOTDIR:
            raise StorageError(f"'{name}' could not be {verb}: part of its path is a file.") from error
        if error.errno == errno.EISDIR:
            raise StorageError(
                f"'{name}' could not be {verb}: it is a folder.", hint="Give the name of a file."
            ) from error
        raise StorageError(f"'{name}' could not be {verb}: {error}.") from error
    except Exception as error:
        hint = _remote_hint(error, store.storage_options)
        if hint is None:
            raise
        raise StorageError(f"'{name}' could not be {verb}: {str(error).rstrip('.')}.", hint=hint) from error


@contextlib.contextmanager
def _room(store: Store, rel: str) -> Iterator[None]:
    """Where something is put: a place that does not exist is refused."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            f"'{store.url}/{rel}' could not be written: there is no such bucket or place.",
            hint="Make the bucket first, or choose another place.",
        ) from error


def _remote_hint(error: Exception, options: Mapping[str, Any]) -> str | None:
    """What to do about an error of a remote store that is no OSError; None if it is no such error."""
    text = str(error)
    if isinstance(error, TypeError) and any(f"'{key}'" in text for key in options):
        return "The storage has no option of that name; see --storage-option in the help."
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return (
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
            "a public bucket opens with --storage-option anon=true."
        )
    if type(error).__module__.startswith(("botocore", "aiobotocore")) or "Invalid endpoint" in text:
        return "Check the address and that it answers: --storage-option endpoint_url=http://HOST:PORT"
    return None
