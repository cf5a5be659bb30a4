"""The sky in Mollweide projection as inline SVG: where the objects are, by HEALPix cell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

RADIUS = 150.0
WIDTH, HEIGHT = 4 * RADIUS + 20, 2 * RADIUS + 20
#: Order of the cells that are counted; a cell is 1.8 degrees wide.
ORDER = 5


def mollweide(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mollweide projection (Snyder 1987, USGS PP 1395) with ra 0 in the middle, growing to the left.

    Parameters
    ----------
    ra, dec : ndarray, float, shape (n,)
        Degrees.

    Returns
    -------
    x, y : ndarray, float64, shape (n,)
        x from -2 to 2, y from -1 (south) to 1.
    """
    longitude = np.radians((np.asarray(ra, float) + 180.0) % 360.0 - 180.0)
    latitude = np.radians(np.asarray(dec, float))
    theta = latitude.copy()
    target = np.pi * np.sin(latitude)
    for _ in range(30):
        slope = np.maximum(2.0 + 2.0 * np.cos(2.0 * theta), 1e-9)
        theta = np.clip(theta - (2.0 * theta + np.sin(2.0 * theta) - target) / slope, -np.pi / 2, np.pi / 2)
    return -2.0 / np.pi * longitude * np.cos(theta), np.sin(theta)


def cell_centres(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right ascension and declination (degrees) of the centres of nested cells of :data:`ORDER`."""
    from cdshealpix.nested import healpix_to_lonlat

    lon, lat = healpix_to_lonlat(np.asarray(cells, np.uint64), ORDER)
    return lon.deg, lat.deg


def sky_map_svg(in_scope: Mapping[int, int], rest: Mapping[int, int]) -> str:
    """Inline SVG: discs at HEALPix cells, filled for in-scope objects, open for the rest; log scaled.

    Parameters
    ----------
    in_scope, rest : mapping
        Nested cell of :data:`ORDER` -> number of episodes.
    """
    parts = [f'<svg class="sky" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="Sky map">']
    parts.append(
        f'<ellipse class="frame" cx="{WIDTH / 2:g}" cy="{HEIGHT / 2:g}" rx="{2 * RADIUS:g}" ry="{RADIUS:g}"/>'
    )
    span = np.linspace(-90.0, 90.0, 61)
    for ra in range(-150, 180, 30):
        parts.append(_line(np.full(61, float(ra)), span, "grid"))
    for dec in range(-60, 90, 30):
        parts.append(_line(np.linspace(-179.99, 179.99, 121), np.full(121, float(dec)), "grid"))
    parts.append(_galactic_plane())
    for cells, kind in ((rest, "rest"), (in_scope, "scope")):
        if cells:
            numbers = np.array(sorted(cells), np.int64)
            x, y = _place(*cell_centres(numbers))
            radii = 1.6 + 1.5 * np.log10([cells[int(number)] for number in numbers])
            discs = "".join(
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{r:.1f}"/>'
                for a, b, r in zip(x, y, radii, strict=True)
            )
            parts.append(f'<g class="{kind}">{discs}</g>')
    for hours in (0, 6, 18):
        x, y = _place(np.array([hours * 15.0]), np.array([0.0]))
        parts.append(f'<text x="{x[0] + 3:.0f}" y="{y[0] - 3:.0f}">{hours}h</text>')
    for dec in (-60, -30, 30, 60):
        x, y = _place(np.array([179.99]), np.array([float(dec)]))
        parts.append(f'<text x="{x[0] - 4:.0f}" y="{y[0]:.0f}" text-anchor="end">{dec:+d}°</text>')
    parts.append("</svg>")
    return "".join(parts).replace(">-", ">−")


def _place(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = mollweide(ra, dec)
    return WIDTH / 2 + RADIUS * x, HEIGHT / 2 - RADIUS * y


def _line(ra: np.ndarray, dec: np.ndarray, kind: str) -> str:
    x, y = _place(ra, dec)
    jump = np.abs(np.diff(x, prepend=x[0])) > RADIUS
    steps = "".join(f"{'M' if i == 0 or jump[i] else 'L'}{x[i]:.1f} {y[i]:.1f}" for i in range(len(x)))
    return f'<path class="{kind}" d="{steps}"/>'


def _galactic_plane() -> str:
    """The line b = 0, from the ICRS pole of the galactic system (ESA 1997, Hipparcos SP-1200, eq. 1.5.11)."""
    pole_ra, pole_dec, node = np.radians([192.85948, 27.12825, 32.93192])
    along = np.linspace(0.0, 2.0 * np.pi, 361) - node
    dec = np.arcsin(np.cos(pole_dec) * np.sin(along))
    ra = pole_ra + np.arctan2(np.cos(along), -np.sin(pole_dec) * np.sin(along))
    return _line(np.degrees(ra), np.degrees(dec), "plane")
