"""Errors that users see, each with the exit code the command line ends with.

A message is one sentence that says what was wrong, what was given and what is allowed; ``hint`` is the next
command or step.  Everything that is a user's or an input's fault derives from :class:`UserError`.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_SET_ASIDE = 3
EXIT_REFUSED = 4
EXIT_CLUSTER = 5
EXIT_INTERRUPTED = 130
#: Whoever read our output had enough, as in ``… | head``; what a shell says of SIGPIPE.
EXIT_PIPE = 141
EXIT_TERMINATED = 143


class AppleciderError(Exception):
    """Root of all errors raised on purpose.

    Parameters
    ----------
    message : str
        One sentence: what was wrong, what was given, what is allowed.
    hint : str, optional
        The next command or step.
    """

    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (Ray): keep the keyword argument.
        return (_rebuild, (type(self), self.message, self.hint))

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


def _rebuild(kind: type[AppleciderError], message: str, hint: str | None) -> AppleciderError:
    return kind(message, hint=hint)


class InternalError(AppleciderError):
    """A promise of this program does not hold: our fault."""

    exit_code = EXIT_INTERNAL


class UserError(AppleciderError):
    """Input, archive, model set, run or storage was refused."""

    exit_code = EXIT_REFUSED


class UsageError(UserError):
    """Options that contradict each other or cannot be read."""

    exit_code = EXIT_USAGE


class StorageError(UserError):
    """The storage refused: read-only, full, unreachable."""


class ClusterError(UserError):
    """The cluster cannot be reached or cannot place what was asked."""

    exit_code = EXIT_CLUSTER
