"""Finding the objects that a shard fails with, so that the rest of it goes on.

After a shard's first charge its halves are tried, one at a time and without committing anything; a half that
fails is halved again, down to single objects.  An object that fails alone, twice, is set aside: the shard is
done without touching it, and its row says why.  A shard of which more than :data:`MAX_OBJECTS` objects or
half of them fail is not a matter of single objects, and neither is one whose halves both succeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from applecider_batch.digest import hash64_one
from applecider_batch.engine.plan import Shard

MAX_OBJECTS = 32
OBJECT_FAILED = "object_failed"
WORKER_DIED = ("worker_died", "The process that worked on this object died.")


@dataclass(frozen=True)
class Attempt:
    """How a shard is handed in.

    Attributes
    ----------
    name : str
        Letters and digits, not used before in this run; part of the data file's name only.
    set_aside : dict of objectId -> (error_code, sentence)
        Objects of the shard that are not to be touched.
    trial : bool
        Do everything except writing and committing.
    """

    name: str
    set_aside: dict[str, tuple[str, str]] = field(default_factory=dict)
    trial: bool = False


class Isolation:
    """Halves a shard; ask for :attr:`trial`, hand it in, and tell how it ended.

    Parameters
    ----------
    shard : Shard
        All of it failed.
    names : sequence of str
        objectIds in it.

    Attributes
    ----------
    found : dict of objectId -> (error_code, sentence)
    """

    def __init__(self, shard: Shard, names: Sequence[str]) -> None:
        self.shard = shard
        self.found: dict[str, tuple[str, str]] = {}
        self.trials = 0
        by_hash: dict[int, list[str]] = {}
        for name in names:
            by_hash.setdefault(hash64_one(name), []).append(name)
        # Objects that share a hash cannot be told apart by a hash range; they stay together.
        self._groups = sorted(by_hash.items())
        self._todo: list[tuple[int, int, int]] = []  # first and last + 1 group, earlier failures; a stack
        self._allowed = min(MAX_OBJECTS, max(1, len(names) // 2))
        if len(self._groups) == 1:
            self._todo.append((0, 1, 1))
        else:
            self._halve(0, len(self._groups))

    @property
    def trial(self) -> Shard | None:
        """The part of the shard to try next, None when all is known."""
        if not self._todo or self.hopeless:
            return None
        first, end, _ = self._todo[-1]
        lo = self.shard.hash_lo if first == 0 else self._groups[first][0]
        hi = self.shard.hash_hi if end == len(self._groups) else self._groups[end][0]
        return replace(self.shard, hash_lo=lo, hash_hi=hi)

    @property
    def hopeless(self) -> bool:
        """Too many objects fail to call it theirs."""
        return len(self.found) > self._allowed

    def passed(self) -> None:
        """The trial went well."""
        self.trials += 1
        self._todo.pop()

    def failed(self, reason: tuple[str, str]) -> None:
        """The trial failed, with an error code and a sentence."""
        self.trials += 1
        first, end, failures = self._todo.pop()
        if end - first > 1:
            self._halve(first, end)
        elif failures == 0:
            # Once may be chance: the machine's, or somebody's kill.
            self._todo.append((first, end, 1))
        else:
            self.found.update(dict.fromkeys(self._groups[first][1], reason))

    def _halve(self, first: int, end: int) -> None:
        middle = (first + end) // 2
        self._todo += [(a, b, 0) for a, b in ((middle, end), (first, middle)) if b > a]
