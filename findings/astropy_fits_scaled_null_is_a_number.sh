#!/usr/bin/env bash
# FITS with astropy: a missing value of a scaled integer column is read as an unmasked number, -322.68.
#
# Guess: TNULL marks the missing value of an integer column, scaled (TSCAL, TZERO) or not, and Table.read masks it; in
# images BLANK becomes NaN either way.
# What happens (astropy 8.0.2): Table.read masks TNULL in a plain integer column. With TSCAL and TZERO, the marker -32768 is
# scaled like a value, 5 + 0.01 * -32768 = -322.68, in Table.read and in getdata. getdata also returns the plain column's
# marker as data. In images BLANK does become NaN, scaled or not.
# Why it matters: scaled 16-bit columns with TNULL are common in older catalogues and housekeeping tables; a mean or a
# least-squares fit treats the marker as a large negative value, of the right type and unit.
# Instead: compare the integers of the file, np.asarray(getdata(...))["name"], with TNULL and mask those rows.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check astropy==8.0.2 numpy==2.4.6
cd "$dir"
venv/bin/python - <<'PY'
import warnings

import astropy
import numpy as np
from astropy.io import fits
from astropy.table import Table

print("astropy", astropy.__version__, "numpy", np.__version__)
raw = np.array([0, 100, -32768, 300], "i2")
hdu = fits.BinTableHDU.from_columns([fits.Column(name, "I", null=-32768, array=raw) for name in ("plain", "scaled")])
hdu.header["TSCAL2"], hdu.header["TZERO2"] = 0.01, 5.0
hdu.writeto("table.fits")
print({key: hdu.header[key] for key in ("TTYPE1", "TNULL1", "TTYPE2", "TNULL2", "TSCAL2", "TZERO2")})

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    table, data = Table.read("table.fits"), fits.getdata("table.fits")
print("Table.read:", table["plain"].tolist(), table["scaled"].tolist())
print("getdata:   ", data["plain"].tolist(), data["scaled"].tolist())
print("warnings:", [str(w.message) for w in caught])
assert not caught
assert table["plain"].mask.tolist() == [False, False, True, False]
assert not np.ma.getmaskarray(table["scaled"]).any()
assert np.allclose(table["scaled"], [5, 6, -322.68, 8]) and np.allclose(data["scaled"], [5, 6, -322.68, 8])
assert data["plain"].tolist() == raw.tolist()

image = fits.PrimaryHDU(raw)
image.header["BLANK"], image.header["BSCALE"], image.header["BZERO"] = -32768, 0.01, 5.0
image.writeto("image.fits")
print("image:     ", fits.getdata("image.fits").tolist())
assert np.isnan(fits.getdata("image.fits")).tolist() == [False, False, True, False]

stored = np.asarray(fits.getdata("table.fits"))["scaled"]  # the integers of the file
masked = np.ma.masked_where(stored == hdu.header["TNULL2"], data["scaled"])
print("instead:   ", masked.tolist())
assert masked.mask.tolist() == [False, False, True, False]
PY
echo "as described"
