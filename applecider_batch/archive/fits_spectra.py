"""A spectrum kept as a 1-D FITS image with a wavelength axis (IRAF, SDSS' older spectra, most spectrographs).

Wavelength of pixel i (from 1): CRVAL1 + (i - CRPIX1) * CDELT1 (or CD1_1), a power of ten where DC-FLAG is 1
or CTYPE1 ends in LOG with values that are logarithms (Greisen et al. 2006, A&A 446, 747; IRAF's convention).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from applecider_batch.errors import UserError

LOG10_MAX = 10.0  # log10 of a wavelength in Angstrom is near 3.6, a wavelength in Angstrom never below 10


@dataclass
class ImageSpectrum:
    """Wavelength and flux, float64, shape (n,), the axis' unit and the header (names in lower case)."""

    wavelength: np.ndarray
    flux: np.ndarray
    unit: str | None
    header: dict[str, str]


def image_spectrum(data: bytes, name: str) -> ImageSpectrum | None:
    """The spectrum of a FITS image; None if ``data`` is no FITS file or its first data are a table.

    Of an image with more axes (IRAF keeps flux, background and error as bands) the first row is the spectrum.

    Raises
    ------
    UserError
        If the file is damaged, or its image has no wavelength axis.
    """
    if data[:9] != b"SIMPLE  =":
        return None
    from astropy.io import fits

    try:
        with fits.open(io.BytesIO(data)) as hdus:
            hdu = next((h for h in hdus if h.header.get("NAXIS", 0) > 0), None)
            if hdu is None or not isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU):
                return None
            values = np.asarray(hdu.data, np.float64)
            header = {k.lower(): str(v) for h in (hdus[0], hdu) for k, v in h.header.items() if k}
    except (
        Exception
    ) as error:  # a damaged file makes astropy raise OSError, ValueError, TypeError, VerifyError …
        raise UserError(f"The FITS file '{name}' cannot be read: {error}.") from error
    flux = values.reshape(-1, values.shape[-1])[0]
    try:
        start = float(header["crval1"])
        step = float(header.get("cdelt1", header.get("cd1_1", "nan")))
        reference = float(header.get("crpix1", "1"))
    except (KeyError, ValueError) as error:
        raise UserError(f"The FITS image '{name}' has no wavelength axis (CRVAL1 is missing).") from error
    if not np.isfinite(step) or step == 0:
        raise UserError(f"The FITS image '{name}' has no wavelength axis (no CDELT1 or CD1_1).")
    axis = start + (np.arange(1, len(flux) + 1) - reference) * step
    logarithmic = header.get("dc-flag") == "1" or header.get("ctype1", "").upper().endswith("LOG")
    unit = header.get("cunit1") or None
    if logarithmic and abs(start) < LOG10_MAX:
        return ImageSpectrum(10.0**axis, flux, "Angstrom", header)
    return ImageSpectrum(axis, flux, unit, header)
