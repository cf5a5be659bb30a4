"""Logging and progress, both on stderr: stdout belongs to the answer."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_ROOT = "applecider_batch"


def get_logger(name: str) -> logging.Logger:
    """A logger below ``applecider_batch``."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {"t": round(record.created, 3), "level": record.levelname, "logger": record.name}
        return json.dumps({**entry, "message": record.getMessage()})


def configure_logging(level: str = "INFO", *, as_json: bool = False) -> None:
    """Send the package's log to stderr, once; a second call replaces the first."""
    logger = logging.getLogger(_ROOT)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


class Progress:
    """Progress of a known or unknown number of units: a bar on a terminal, plain lines elsewhere.

    Parameters
    ----------
    label : str
        What is being done.
    total : int, optional
        Units in all, where known.
    unit : str
        What is counted, in the plural.
    enabled : bool
        False shows nothing (library use, ``--quiet``).
    every_seconds : float
        Least time between two plain lines.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        unit: str = "items",
        enabled: bool = True,
        every_seconds: float = 5.0,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.notes: dict[str, Any] = {}
        self._enabled = enabled
        self._every = every_seconds
        self._start = time.monotonic()
        self._shown = self._start
        self._base = 0
        self._terminal = enabled and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None or self.done:  # what is refused at once has no state to show
            self.close()

    def expect(self, total: int) -> None:
        """Units in all, where they are known only by now."""
        self.total = total

    def already(self, done: int) -> None:
        """Units finished earlier (a resumed run): shown, but not counted into the rate."""
        self.done += done
        self._base += done

    def update(self, done: int = 1, **notes: Any) -> None:
        """Count finished units and show the state; ``notes`` are shown behind it."""
        self.done += done
        self.notes.update(notes)
        now = time.monotonic()
        if self._enabled and now - self._shown >= (0.2 if self._terminal else self._every):
            self._shown = now
            self._show("\r" if self._terminal else "", "" if self._terminal else "\n")

    def close(self) -> None:
        """Show the last state."""
        if self._enabled:
            self._show("\r" if self._terminal else "", "\n")
            self._enabled = False

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self._base) / max(time.monotonic() - self._start, 1e-9)

    def line(self) -> str:
        """The state in one line."""
        parts = [f"{self.label}: {self.done:,}"]
        if self.total:
            parts = [f"{self.label}: {self.done:,}/{self.total:,} {self.unit} ({self.done / self.total:.0%})"]
        else:
            parts[0] += f" {self.unit}"
        parts.append(f"{self.rate:,.1f} {self.unit}/s")
        if self.total and self.rate > 0 and self.done < self.total:
            parts.append(f"ETA {_clock((self.total - self.done) / self.rate)}")
        parts.extend(f"{name} {value}" for name, value in self.notes.items())
        return " · ".join(parts)

    def _show(self, start: str, end: str) -> None:
        text = self.line()
        sys.stderr.write(f"{start}{text:<100}{end}" if self._terminal else f"{text}{end}")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
