"""Features of the `light-curve` package (Malanchev et al. 2021, arXiv:2012.01419) of truncated curves."""

from __future__ import annotations

import numpy as np

NAMES = (
    "Amplitude", "Cusum", "Duration", "Eta", "EtaE", "ExcessVariance", "Kurtosis", "LinearFit", "LinearTrend",
    "MaximumSlope", "Mean", "Median", "MedianAbsoluteDeviation", "ObservationCount", "PercentAmplitude",
    "ReducedChi2", "Skew", "StandardDeviation", "StetsonK", "WeightedMean",
)  # fmt: skip


def light_curve_features(values: np.ndarray, offsets: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Features of the magnitudes in g and r, and the differences of the bands' means and brightest points.

    Parameters
    ----------
    values, offsets
        As `features.prepared.PhotometryInputs`.
    items : ndarray of int64, shape (n,)

    Returns
    -------
    ndarray of float64, shape (n, F)
        NaN where a feature needs more points than there are.

    Raises
    ------
    SystemExit
        If the package is not installed.
    """
    try:
        import light_curve
    except ImportError as error:
        raise SystemExit(
            "This comparison needs the light-curve package: pip install 'applecider-batch[bench]'"
        ) from error
    extractor = light_curve.Extractor(
        *(getattr(light_curve, name)() for name in NAMES),
        light_curve.BeyondNStd(1.0),
        light_curve.InterPercentileRange(0.25),
        light_curve.MagnitudePercentageRatio(0.4, 0.05),
    )
    width = len(extractor.names)
    out = np.full((len(items), 2 * width + 4), np.nan)
    for number, item in enumerate(items.tolist()):
        x = values[offsets[item] : offsets[item + 1]].astype(np.float64)
        t, mag, error = np.expm1(x[:, 0]), -2.5 * x[:, 2], np.maximum(2.5 * x[:, 3], 1e-4)
        for band in range(2):
            own = np.flatnonzero(x[:, 4 + band] > 0)
            own = own[np.append(True, np.diff(t[own]) > 0)] if len(own) else own
            if len(own):
                start = band * width
                out[number, start : start + width] = extractor(
                    t[own], mag[own], error[own], sorted=True, fill_value=np.nan
                )
                out[number, 2 * width + 2 * band :][:2] = mag[own].mean(), mag[own].min()
    out[:, 2 * width + 2 :] -= out[:, 2 * width : 2 * width + 2]
    return out
