"""The run folder: all that is known of a run, on any fsspec URL.

The output tree::

    RUN/plan.json                        create-only; run_id is the digest of its identity
    RUN/objects/<digest>.parquet         the objects of a run that is not of all (see ``selection.py``)
    RUN/manifest.jsonl                   lines per session: start, working, how it ended
    RUN/lease.json                       the driver at work: host, pid, heartbeat (see ``lease.py``)
    RUN/cancel.json                      a request to stop, taken away by the driver
    RUN/data/shard-00012.<attempt>.parquet   rows of a shard (schema ``catalogue``)
    RUN/commits/shard-00012.json         create-only; names the one data file that counts
    RUN/failures/shard-00012.<n>.json    one per failed attempt, charged or not
    RUN/quarantine/shard-00012.json      the shard was set aside, with its last error
    RUN/set_aside/shard-00012.json       objects of the shard that it fails with, each with its error
    RUN/metrics.jsonl                    one line per committed shard: seconds by step, objects
    RUN/log.txt

A data file is written beside its name and renamed, then the create-only commit record is written.  Only a
data file that a commit record names exists for readers; attempt names differ between sessions, so a worker
left over from a dead driver can neither overwrite a committed file nor commit a shard twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from applecider_batch.engine.plan import Plan, differences
from applecider_batch.errors import UserError
from applecider_batch.storage import Store, json_bytes

PLAN = "plan.json"
#: What may be in the folder of a run that has no plan yet.
OWN = ("objects", "lease.json", "cancel.json", "log.txt")
# A shard's data file, whole or what a killed process left of one.
_DATA_NAME = re.compile(r"^\.?(shard-\d{5,})\.[A-Za-z0-9]+\.parquet(\.[0-9a-f]+\.tmp)?$")
_FAILURE_NAME = re.compile(r"^(shard-\d{5,})\.(\d+)\.json$")


class RunFolder:
    """Reads and writes a run folder; see the module for the tree.

    Parameters
    ----------
    store : Store
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    # ---- plan

    def plan(self) -> Plan | None:
        """The run's plan, None where the folder has none yet."""
        try:
            document = self.store.read_json(PLAN)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Plan.from_json(document)

    def require_plan(self) -> Plan:
        """The run's plan; UserError where the folder is not a run."""
        plan = self.plan()
        if plan is None:
            raise UserError(
                f"'{self.store.url}' is not a run folder: it has no plan.json.",
                hint="Make one with: applecider-batch classify --archive URL --models SET --run URL",
            )
        return plan

    def begin(self, plan: Plan) -> Plan:
        """Write the plan of a new run, or check that an old run has the same identity.

        Returns
        -------
        Plan
            The one in the folder.

        Raises
        ------
        UserError
            If the run was made with another plan; it says what differs. If the folder holds other things.
        """
        found = self.store.ls()
        others = [name for name in found if name not in OWN and not name.startswith(".")]
        if others and PLAN not in found:
            raise UserError(
                f"'{self.store.url}' is no run folder: it holds {', '.join(others[:3])} and no {PLAN}.",
                hint="Give --run a new or empty folder.",
            )
        try:
            self.store.create_only(PLAN, json_bytes(plan.to_json()))
        except FileExistsError:
            pass
        else:
            return plan
        old = self.require_plan()
        if said := differences(old.identity, plan.identity):
            raise UserError(
                f"The run '{self.store.url}' was made with another plan and cannot be resumed with this one; "
                f"what differs: {'; '.join(said)}.",
                hint=f"Repeat the first options to resume it (its snapshot is {old.snapshot_id}), "
                "or give a new --run.",
            )
        return old

    # ---- commits

    def commit(self, shard_name: str, record: Mapping[str, Any]) -> None:
        """Make a shard's data file count; FileExistsError if the shard is committed already."""
        self.store.create_only(f"commits/{shard_name}.json", json_bytes(dict(record)))

    def committed(self) -> set[str]:
        """Names of the shards that are committed."""
        return {name[: -len(".json")] for name in self.store.ls("commits") if _is_record(name)}

    def commit_record(self, shard_name: str) -> dict[str, Any]:
        """The commit record of a shard."""
        record: dict[str, Any] = self.store.read_json(f"commits/{shard_name}.json")
        return record

    def commit_records(self, shard_names: Sequence[str]) -> list[dict[str, Any]]:
        """Commit records in the order asked for, read side by side: each may be a round trip."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            return list(pool.map(self.commit_record, shard_names))

    # ---- failures and quarantine

    def failures(self) -> dict[str, list[dict[str, Any]]]:
        """Records of all failed attempts by shard name, oldest first."""
        found: dict[str, list[tuple[int, str]]] = {}
        for name in self.store.ls("failures"):
            if match := _FAILURE_NAME.match(name):
                found.setdefault(match[1], []).append((int(match[2]), name))
        return {
            shard: [self.store.read_json(f"failures/{name}") for _, name in sorted(listed)]
            for shard, listed in sorted(found.items())
        }

    def record_failure(self, shard_name: str, number: int, record: Mapping[str, Any]) -> None:
        """Write the ``number``-th failure of a shard."""
        self.store.write_json_atomic(f"failures/{shard_name}.{number}.json", dict(record))

    def quarantined(self) -> set[str]:
        """Names of the shards that were set aside and not committed since."""
        names = {name[: -len(".json")] for name in self.store.ls("quarantine") if _is_record(name)}
        return names - self.committed() if names else names

    def quarantine(self, shard_name: str, record: Mapping[str, Any]) -> None:
        """Set a shard aside."""
        self.store.write_json_atomic(f"quarantine/{shard_name}.json", dict(record))

    def quarantine_record(self, shard_name: str) -> dict[str, Any]:
        """Why a shard was set aside."""
        record: dict[str, Any] = self.store.read_json(f"quarantine/{shard_name}.json")
        return record

    def release(self, shard_name: str) -> None:
        """Give a quarantined shard a new start; its failures go first, so that no charge is left behind."""
        for name in self.store.ls("failures"):
            match = _FAILURE_NAME.match(name)
            if match and match[1] == shard_name:
                self.store.delete(f"failures/{name}")
        for folder in ("set_aside", "quarantine"):
            self.store.delete(f"{folder}/{shard_name}.json")

    def set_objects_aside(self, shard_name: str, objects: Mapping[str, tuple[str, str]]) -> None:
        """Remember the objects that a shard fails with: objectId -> (error_code, sentence)."""
        self.store.write_json_atomic(f"set_aside/{shard_name}.json", dict(objects))

    def objects_set_aside(self) -> dict[str, dict[str, tuple[str, str]]]:
        """Objects set aside, by shard name."""
        found = [name for name in self.store.ls("set_aside") if _is_record(name)]
        return {
            name[: -len(".json")]: {
                key: (code, said) for key, (code, said) in self.store.read_json(f"set_aside/{name}").items()
            }
            for name in found
        }

    # ---- garbage

    def collect_garbage(self) -> list[str]:
        """Remove data files that can never count: those of a committed shard that its record does not name.

        A file of a shard that is not committed stays: a worker of a dead driver may still be about to
        commit it.

        Returns
        -------
        list of str
            Files removed.
        """
        by_shard: dict[str, list[str]] = {}
        for folder in ("data", *(f"side/{name}" for name in self.store.ls("side"))):
            for name in self.store.ls(folder):
                if match := _DATA_NAME.match(name):
                    by_shard.setdefault(match[1], []).append(f"{folder}/{name}")
        removed: list[str] = []
        for shard in sorted(self.committed() & set(by_shard)):
            names = by_shard[shard]
            if len({name.rsplit("/", 1)[-1] for name in names}) > 1:
                kept = self.commit_record(shard)["data_file"].rsplit("/", 1)[-1]
                removed.extend(name for name in names if name.rsplit("/", 1)[-1] != kept)
        for name in removed:
            self.store.delete(name)
        return removed


def _is_record(name: str) -> bool:
    return name.startswith("shard-") and name.endswith(".json")


class Lines:
    """A text file of lines that one driver adds to; on an object store it is rewritten now and then.

    Parameters
    ----------
    store : Store
    rel : str
        Name of the file; what it holds already stays.
    """

    def __init__(self, store: Store, rel: str) -> None:
        self._store, self._rel = store, rel
        self._lines = read_lines(store, rel)
        self._dirty = False

    def __iter__(self) -> Iterator[str]:
        """The lines so far."""
        return iter(self._lines)

    def add(self, line: str) -> None:
        """Add a line; it is on storage after the next :meth:`flush`."""
        self._lines.append(line)
        self._dirty = True

    def flush(self) -> None:
        """Write what was added."""
        if self._dirty:
            self._store.write_atomic(self._rel, ("\n".join(self._lines) + "\n").encode())
            self._dirty = False


def read_lines(store: Store, rel: str) -> list[str]:
    """Lines of a text file, none where it is absent."""
    try:
        return store.read_bytes(rel).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
