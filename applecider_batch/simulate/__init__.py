"""A small survey in ZTF's own format, with truth; see :mod:`applecider_batch.simulate.survey`."""

from __future__ import annotations

from applecider_batch.simulate.survey import simulate

__all__ = ["simulate"]
