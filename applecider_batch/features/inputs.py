"""Everything a shard's rows and networks need, made from its packets behind each row's wall.

:func:`prepare_shard` and :func:`prepare_packets` are the entries: archive tables in, rows of the catalogue
(without probabilities) and the inputs of each modality out. Inputs that are equal for several horizons exist
once; ``row_index`` leads from a row to its input, -1 where it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.digest import hash64
from applecider_batch.errors import UserError
from applecider_batch.features.asof import (
    RowSet,
    View,
    Walls,
    check_horizons,
    expand_rows,
    packet_rows,
    view_packets,
    view_points,
    walls_of,
)
from applecider_batch.features.curve_summary import CURVE_SUMMARY, curve_summary
from applecider_batch.features.cuts import cut_columns
from applecider_batch.features.episodes import Episodes, find_episodes
from applecider_batch.features.gate import Score, judge
from applecider_batch.features.gate_features import gate_features
from applecider_batch.features.gate_model import Judges
from applecider_batch.features.light_curves import (
    N_FEATURES,
    Events,
    choose_points,
    drop_repeated,
    event_features,
    in_sequence,
    merge_events,
)
from applecider_batch.features.limits import limits_of, merge_limits
from applecider_batch.features.metadata import event_history, packet_metadata
from applecider_batch.features.points import Alerts, Points, load_alerts, load_points
from applecider_batch.features.prepared import (
    LIGHT_CURVE_SCHEMA,
    CurveSummary,
    ImageInputs,
    PhotometryInputs,
    Prepared,
    Shard,
    SpectraInputs,
    failed_objects,
    join_prepared,
    prepare_isolating,
    rows_schema,
    subset,
)
from applecider_batch.features.profiles import Profile, get_profile
from applecider_batch.features.quality import Quality
from applecider_batch.features.segments import (
    expand_ranges,
    float_column,
    last_true,
    take_ranges,
)
from applecider_batch.features.spectra_inputs import spectra_inputs
from applecider_batch.features.summary import Summary, nullable, summarise

__all__ = ["ImageInputs", "PhotometryInputs", "Prepared", "Shard", "SpectraInputs", "prepare_shard"]

MODALITIES: tuple[str, ...] = ("photometry", "image", "spectra")
RULES_ALONE = Judges()


def prepare_shard(
    shard: Shard,
    horizons: Sequence[float | None],
    profile: Profile,
    *,
    snapshot_jd_max: float,
    modalities: Collection[str] = MODALITIES,
    judges: Judges = RULES_ALONE,
    set_aside: Mapping[str, tuple[str, str]] | None = None,
) -> Prepared:
    """Rows and network inputs of a shard, every one behind its own as-of wall.

    Parameters
    ----------
    shard : archive.read.ShardData
        Objects with alerts, stitched photometry and spectra.
    horizons : sequence of float or None
        Days after t0; None is the full history.
    profile : Profile
    snapshot_jd_max : float
        Last jd of the snapshot: the wall of the full history.
    modalities : collection of str
        Which inputs are made, of photometry, image, spectra; with photometry also ``curve_summary``.
    judges : Judges
        The user's own cuts and the model set's learned gate.
    set_aside : mapping of objectId -> (error_code, sentence), optional
        Objects that are not to be touched: each has one row that says so.

    Returns
    -------
    Prepared
        An object whose preparation failed has its rows, without inputs, with ``error_code``.

    Raises
    ------
    UserError
        For unknown modalities or wrong horizons.
    """
    days = check_horizons(horizons)

    def rows(episodes: Episodes, alerts: Alerts) -> RowSet:
        return expand_rows(episodes, days, snapshot_jd_max)

    if not set_aside:
        return _prepare(shard, rows, profile, snapshot_jd_max, modalities, judges)
    kept = subset(shard, [name for name in shard.objects if name not in set_aside])
    rest = _prepare(kept, rows, profile, snapshot_jd_max, modalities, judges)
    return join_prepared([rest, failed_objects(set_aside, snapshot_jd_max, profile)])


def prepare_packets(
    shard: Shard,
    profile: Profile,
    *,
    snapshot_jd_max: float,
    max_days: float = np.inf,
    modalities: Collection[str] = MODALITIES,
) -> Prepared:
    """As :func:`prepare_shard`, with a row for every eligible packet, as of that packet (see `packet_rows`).

    These are the moments at which an object's inputs change by a packet: training examples and figures per
    alert are made of them.
    """

    def rows(episodes: Episodes, alerts: Alerts) -> RowSet:
        return packet_rows(episodes, alerts, max_days)

    return _prepare(shard, rows, profile, snapshot_jd_max, modalities, RULES_ALONE)


def prepare_gate(
    shard: Shard, horizons: Sequence[float | None], *, snapshot_jd_max: float
) -> tuple[pa.Table, np.ndarray]:
    """Rows as :func:`prepare_shard` makes them, by the rules alone, to train a learned gate.

    Returns
    -------
    rows : pyarrow.Table
    features : ndarray of float64, shape (n_rows, F)
        What a gate sees of each row.
    """
    days = check_horizons(horizons)

    def rows(episodes: Episodes, alerts: Alerts) -> RowSet:
        return expand_rows(episodes, days, snapshot_jd_max)

    made = _Preparation(shard, rows, get_profile("paper"), frozenset(), RULES_ALONE)
    seen = (made.alerts, made.alert_view, made.points, made.point_view)
    features = made.gate_features(summarise(*seen))
    return made.run().rows, features[made.of_row]


RowMaker = Callable[[Episodes, Alerts], RowSet]


def _prepare(
    shard: Shard,
    rows: RowMaker,
    profile: Profile,
    snapshot_jd_max: float,
    modalities: Collection[str],
    judges: Judges,
) -> Prepared:
    if unknown := sorted(set(modalities) - {*MODALITIES, CURVE_SUMMARY}):
        raise UserError(f"Unknown modalities {', '.join(unknown)}; allowed are {', '.join(MODALITIES)}.")
    if CURVE_SUMMARY in modalities and profile.cut_on_dt:
        raise UserError(f"The profile '{profile.name}' has no summary numbers of light curves; 'paper' has.")

    def prepare(part: Shard) -> Prepared:
        return _Preparation(part, rows, profile, frozenset(modalities), judges).run()

    return prepare_isolating(shard, prepare, snapshot_jd_max, profile)


class _Preparation:
    """One pass over a shard; each step is vectorised over all objects, episodes and horizons."""

    def __init__(
        self,
        shard: Shard,
        rows: RowMaker,
        profile: Profile,
        modalities: frozenset[str],
        judges: Judges,
    ) -> None:
        names = pa.array(shard.objects, pa.string())
        hashes = hash64(names)
        order = np.lexsort((pc.rank(names).to_numpy(), hashes)) if len(names) else np.empty(0, np.int64)
        self.objects: pa.Array = names.take(pa.array(order))
        self.hashes: np.ndarray = hashes[order]
        self.profile = profile
        self.modalities = modalities
        self.judges = judges
        self.alerts: Alerts = load_alerts(shard.alerts, self.objects)
        self.points: Points = load_points(shard.photometry, self.objects)
        self.spectra_table = shard.spectra
        self.episodes: Episodes = find_episodes(self.alerts, self.points, len(self.objects))
        self.rows: RowSet = rows(self.episodes, self.alerts)
        self.walls: Walls = walls_of(self.episodes, self.rows.episode, self.rows.as_of_jd)
        self.alert_view, self.point_view = view_packets(self.alerts, self.points, self.episodes, self.walls)
        self.of_row = self.alert_view.of_wall
        self.has_t0 = np.isfinite(self.episodes.t0)
        self.quality = np.zeros(len(self.rows), np.int64)
        self.columns: dict[str, pa.Array] = {}

    def run(self) -> Prepared:
        self._identity()
        summary = summarise(self.alerts, self.alert_view, self.points, self.point_view)
        flags = cut_columns(self.judges.cuts, self.alerts, self.alert_view, summary.columns)
        of_view = {**summary.columns, **flags}
        self.columns |= {name: values.take(pa.array(self.of_row)) for name, values in of_view.items()}
        self.quality |= summary.quality[self.of_row]
        self._gate(summary)
        photometry, light_curves = self._photometry()
        image = self._image(summary)
        spectra = self._spectra()
        self.quality |= np.where(self.has_t0[self.rows.episode], 0, Quality.NO_T0)
        self.quality |= np.where(self.episodes.number[self.rows.episode] > 1, Quality.LATER_EPISODE, 0)
        n = len(self.rows)
        self.columns["quality_flags"] = pa.array(self.quality, pa.int64()).cast(pa.int32())
        self.columns["error_code"] = pa.nulls(n, pa.string())
        self.columns["object_error"] = pa.nulls(n, pa.string())
        schema = rows_schema()
        rows = pa.table([self.columns[field.name].cast(field.type) for field in schema], schema=schema)
        return Prepared(rows, photometry, image, spectra, light_curves)

    def _identity(self) -> None:
        episodes, rows = self.episodes, self.rows
        obj, no_t0 = episodes.obj[rows.episode], ~self.has_t0[rows.episode]
        before = {"n_visits_before_t0": episodes.visits_before, "n_det_before_t0": episodes.detections_before}
        self.columns |= {
            "hash64": pa.array(self.hashes[obj], pa.uint64()),
            "objectId": self.objects.take(pa.array(obj)),
            "episode": pa.array(episodes.number[rows.episode], pa.int16()),
            "t0": nullable(episodes.t0[rows.episode], pa.float64()),
            "as_of_jd": pa.array(rows.as_of_jd, pa.float64()),
            "horizon_days": nullable(rows.horizon_days, pa.float64()),
            "horizon_complete": nullable(rows.complete, pa.bool_(), no_t0),
        }
        for name, values in before.items():
            self.columns[name] = nullable(values[rows.episode], pa.int32(), values[rows.episode] < 0)

    def _gate(self, summary: Summary) -> None:
        has_t0 = self.has_t0[self.alert_view.episode]
        gate, score = self.judges.gate, None
        if gate is not None:
            score = Score(*gate.judge(self.gate_features(summary)), gate.threshold)
        verdict = judge(self.alerts, self.alert_view, self.points, self.point_view, has_t0, score)
        probability = np.full(len(self.alert_view), np.nan) if score is None else score.probability
        self.columns["gate"] = pa.array(verdict.gate[self.of_row], pa.string())
        self.columns["gate_reason"] = pa.array(verdict.reason[self.of_row], pa.string())
        self.columns["prob_in_scope"] = nullable(probability[self.of_row], pa.float32())

    def gate_features(self, summary: Summary) -> np.ndarray:
        """What the learned gate sees of each view, float64 (v, F)."""
        latitude = float_column(pa.table({"b": summary.columns["galactic_b"]}), "b")
        return gate_features(self.alerts, self.alert_view, self.points, self.point_view, latitude)

    def _merged(self, view: View) -> Events:
        sequence, position = choose_points(self.points, view.segment, view.position, self.profile)
        p = self.points
        return merge_events(
            sequence, p.fid[position], p.jd[position], p.flux[position], p.flux_err[position], self.profile
        )

    def _photometry(self) -> tuple[PhotometryInputs, pa.Table]:
        n_rows, n_views = len(self.rows), len(self.point_view)
        if "photometry" not in self.modalities:
            empty = np.empty((0, N_FEATURES), np.float32)
            nothing = PhotometryInputs(empty, np.zeros(1, np.int64), np.full(n_rows, -1, np.int32))
            return nothing, self._light_curves(self._merged(self.point_view).take(np.empty(0, np.int64)))
        events = self._merged(self.point_view)
        usable = events.take(self.has_t0[self.point_view.episode[events.sequence]])
        # A cut on dt makes the sequence depend on the horizon as well as on what is visible.
        if self.profile.cut_on_dt:
            first = np.searchsorted(usable.sequence, self.of_row, "left")
            last = np.searchsorted(usable.sequence, self.of_row, "right")
            sequence, where = expand_ranges(first, last)
            events_of = usable.take(where)
            events_of = Events(
                sequence, *(getattr(events_of, f) for f in list(Events.__dataclass_fields__)[1:])
            )
            made = event_features(events_of, n_rows, self.profile, self.rows.horizon_days)
            to_sequence, family = np.arange(n_rows), self.rows.episode
        else:
            made = event_features(usable, n_views, self.profile)
            to_sequence, family = self.of_row, self.point_view.episode
        limits = None
        if CURVE_SUMMARY in self.modalities:
            view = self.point_view
            measured = merge_limits(self.points, view.segment, view.position, self.profile)
            limits = limits_of(usable.take(in_sequence(usable)), made, measured)
        kept, item = drop_repeated(made, family, limits)
        source, offsets = take_ranges(made.offsets, kept)
        summary = None
        if limits is not None:
            which, limit_offsets = take_ranges(limits[1], kept)
            numbers = curve_summary(made.values[source], offsets, limits[0][which], limit_offsets)
            summary = CurveSummary(limits[0][which], limit_offsets, numbers)
        self.quality |= np.where(made.n_not_positive[to_sequence] > 0, Quality.EVENTS_NOT_POSITIVE, 0)
        self.quality |= np.where(made.n_cut[to_sequence] > 0, Quality.SEQUENCE_CUT, 0)
        inputs = PhotometryInputs(made.values[source], offsets, item[to_sequence], summary)
        return inputs, self._light_curves(events)

    def _light_curves(self, events: Events) -> pa.Table:
        """Events behind the last wall of each episode, whatever their sign."""
        last_row = np.flatnonzero(
            np.append(self.rows.episode[1:] != self.rows.episode[:-1], True)[: len(self.rows)]
        )
        shown = np.zeros(len(self.point_view), bool)
        shown[self.of_row[last_row]] = True
        events = events.take(shown[events.sequence])
        episode = self.point_view.episode[events.sequence]
        obj = self.episodes.obj[episode]
        columns = {
            "hash64": pa.array(self.hashes[obj], pa.uint64()),
            "objectId": self.objects.take(pa.array(obj)),
            "episode": pa.array(self.episodes.number[episode], pa.int16()),
            "jd": pa.array(events.jd, pa.float64()),
            "fid": pa.array(events.fid, pa.int64()),
            "flux_ujy": pa.array(events.flux, pa.float64()),
            "flux_err_ujy": pa.array(events.flux_err, pa.float64()),
            "n_points": pa.array(events.n_points, pa.int64()),
            "in_sequence": pa.array(in_sequence(events)),
        }
        arrays = [columns[field.name].cast(field.type) for field in LIGHT_CURVE_SCHEMA]
        return pa.table(arrays, schema=LIGHT_CURVE_SCHEMA)

    def _image(self, summary: Summary) -> ImageInputs:
        view, alerts = self.alert_view, self.alerts
        position = np.full(len(view), -1, np.int64)
        if "image" in self.modalities:
            position = last_true(alerts.eligible & alerts.stamps_ok, view.first, view.last)
            position[~self.has_t0[view.episode]] = -1
        found = np.flatnonzero(position >= 0)
        pairs = np.stack([view.episode[found], position[found]], axis=1)
        key, inverse = np.unique(pairs, axis=0, return_inverse=True)
        episode, packet = key[:, 0], key[:, 1]
        item = np.full(len(view), -1, np.int32)
        item[found] = inverse.ravel()
        row_item = item[self.of_row]
        row_packet = position[self.of_row]
        absent = row_packet < 0

        # The metadata know what the packet knew: the same numbers at every horizon that shows this packet.
        jd = alerts.jd[packet]
        events = self._merged(view_points(self.points, self.episodes, Walls(episode, jd)))
        history = event_history(events, len(packet), jd, self.profile)
        metadata = packet_metadata(alerts, packet, history, self.profile)

        full = np.isnan(self.rows.horizon_days)
        now = np.where(full, summary.last_alert_jd[self.of_row], self.rows.as_of_jd)
        age = np.where(absent, np.nan, now - (alerts.jd[row_packet] if len(alerts) else np.nan))
        candid = alerts.candid[row_packet] if len(alerts) else row_packet
        self.columns["candid_image"] = nullable(candid, pa.int64(), absent)
        self.columns["image_age_days"] = nullable(age, pa.float32())
        self.quality |= np.where(absent, Quality.NO_STAMPS, 0) if "image" in self.modalities else 0
        hashes = self.hashes[alerts.obj[packet]]
        return ImageInputs(alerts.candid[packet], hashes, metadata, row_item)

    def _spectra(self) -> SpectraInputs:
        table = self.spectra_table if "spectra" in self.modalities else self.spectra_table.slice(0, 0)
        made = spectra_inputs(table, self.objects, self.episodes, self.rows, self.walls.wall_jd, self.profile)
        self.columns |= made.columns
        self.quality |= made.quality
        return made.inputs
