"""What becomes of an attempt at a shard, and how an exception turns into it."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from applecider_batch.archive.snapshot import ArchiveError
from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.shard_task import Ready, ShardTask
from applecider_batch.errors import AppleciderError, StorageError
from applecider_batch.inference.shard import Port
from applecider_batch.storage import is_of_storage

# The storage itself refuses: no other shard would fare better, so the run stops instead of quarantining
# them all.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


class Stopped(Exception):
    """Raised ahead of a batch when the run is to stop."""


class ModelLost(Exception):
    """A model actor or its node died under a batch."""


@dataclass
class Outcome:
    """What became of an attempt at a shard.

    Attributes
    ----------
    shard : Shard
    kind : str
        ``committed``, ``tried`` (a trial went well), ``error``, ``worker_died``, ``infrastructure``,
        ``fatal`` or ``interrupted``.
    by_object : bool
        Whether it may be the fault of an object of the shard.
    record, metrics : dict
        Commit record, and seconds by step, of a committed shard.
    error, error_type : str
        The error's sentence and class.
    detail : str
        Traceback or what is known.
    raised : AppleciderError or None
        What to end the run with, if ``fatal``.
    """

    shard: Shard
    kind: str
    record: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    error_type: str = ""
    detail: str = ""
    raised: AppleciderError | None = None
    by_object: bool = False


def attempt_shard(
    task: ShardTask,
    shard: Shard,
    attempt: Attempt,
    ports: Mapping[str, Port],
    ready: Callable[[], Ready] | None = None,
) -> Outcome:
    """One attempt at a shard; every ordinary exception becomes an outcome that can cross processes.

    Parameters
    ----------
    task : ShardTask
    shard : Shard
    attempt : Attempt
    ports : mapping of modality -> Port
    ready : callable, optional
        See :meth:`ShardTask.run`.
    """
    try:
        done = task.run(shard, attempt, ports, ready)
    except Stopped:
        return Outcome(shard, "interrupted")
    except ModelLost as error:
        return Outcome(shard, "infrastructure", error=str(error), error_type="ModelLost")
    except Exception as error:
        failed = Outcome(
            shard,
            "error",
            error=(error.message if isinstance(error, AppleciderError) else str(error)) or repr(error),
            error_type=type(error).__name__,
            detail=traceback.format_exc(),
            by_object=is_by_object(error),
        )
        if is_fatal(error):
            failed.kind = "fatal"
            failed.raised = error if isinstance(error, AppleciderError) else StorageError(f"{error}.")
        return failed
    record = done.pop("record")
    return Outcome(shard, "tried" if attempt.trial else "committed", record=record, metrics=done)


def is_fatal(error: BaseException) -> bool:
    """Whether the storage itself refused, so that the run has to stop: no space, no permission, read-only."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    return isinstance(cause, PermissionError) or (isinstance(cause, OSError) and cause.errno in _FATAL)


def is_by_object(error: BaseException) -> bool:
    """Whether an object of the shard may be what the error is about.

    Refusals of inputs, storage and memory are not; a damaged file of the archive is, for the objects in it.
    """
    if isinstance(error, ArchiveError):
        return True
    return not (isinstance(error, AppleciderError | MemoryError) or is_of_storage(error))
