"""Codebooks: published ones, and the scale-relative shifted-log codebook."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError
from kdsl.layouts.codes import E4M3, Lut

IQ4_NL = tuple(
    map(float, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
)
"""Entries of GGUF's IQ4_NL."""

SHAPE = {2: 0.6, 3: 0.30, 4: 0.20}
"""Default ``r`` for nearly Gaussian (rotated) weights, by bits."""


def normal_float(bits: int = 4) -> tuple[float, ...]:
    """NormalFloat of QLoRA (arXiv 2305.14314, section 3): quantiles of a Gaussian, zero exact.

    One entry more on the positive side; scaled to an absolute maximum of 1; rounded to float32.
    """
    half = 1 << (bits - 1)
    offset = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    normal = NormalDist()
    up = [normal.inv_cdf(p) for p in np.linspace(offset, 0.5, half + 1)[:-1]]
    down = [-normal.inv_cdf(p) for p in np.linspace(offset, 0.5, half)[:-1]]
    return tuple(float(np.float32(v / up[0])) for v in sorted([*up, 0.0, *down]))


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""NF4 as bitsandbytes publishes it: `normal_float`, rounded a little differently."""


def dynamic_tree(bits: int = 8) -> tuple[float, ...]:
    """The dynamic-tree code of 8-bit optimizers (arXiv 2110.02861, section 1.3), ascending.

    A decade exponent, counted by leading zeros, and a linear fraction in the bits that are left;
    with 0 and 1, and one entry more on the positive side.
    """
    found = [0.0, 1.0]
    for decade in range(bits - 1):
        cuts = np.linspace(0.1, 1, (1 << decade) + 1, dtype=np.float64)
        means = (cuts[:-1] + cuts[1:]) / 2 * 10.0 ** (decade - (bits - 2))
        found += [*means, *-means]
    return tuple(float(np.float32(v)) for v in sorted(found))


NF_SCALES = dynamic_tree()


def shifted_log(bits: int, r: float | None = None, exact: str = "int8", twin: float = 1.0) -> Lut:
    """The sign-symmetric codebook whose magnitudes lie evenly in a shifted logarithm.

    Magnitude ``i`` of ``n = 2**(bits - 1)`` is ``(2**(r (i + 1/2)) - 1) / (2**(r (n - 1/2)) - 1)``:
    exactly ``2**bits`` codes, none of them zero; ``r -> 0`` is uniform.  Codes are sign (top bit)
    and magnitude.  ``exact="int8"`` rounds entries to integers up to 127, ``"e4m3"`` to e4m3 at
    the scale where they round best, ``"float32"`` leaves them.  ``twin`` scales the negative side.
    """
    if not 2 <= bits <= 8 or exact not in ("int8", "e4m3", "float32"):
        raise SpecError(
            f"shifted_log({bits}, exact={exact!r})", hint='2 to 8 bits; "int8", "e4m3", "float32"'
        )
    r = SHAPE.get(bits, 0.1) if r is None else r
    if not (math.isfinite(r) and 0 < r <= 8 and 0 < twin <= 1):
        raise SpecError(f"r={r}, twin={twin}", hint="r in (0, 8], twin in (0, 1]")
    n = 1 << (bits - 1)
    steps = np.arange(n) + 0.5
    magnitudes = np.expm1(r * steps * math.log(2)) / math.expm1(r * (n - 0.5) * math.log(2))
    entries = np.concatenate([magnitudes, -twin * magnitudes])
    if exact == "int8":
        entries = np.rint(127 * entries)
    elif exact == "e4m3":
        entries = _in_e4m3(entries)
    entries = entries.astype(np.float32)
    if len(set(entries.tolist())) != 2 * n:
        raise SpecError(f"r={r} rounds two entries to one {exact}", hint="a smaller r")
    return Lut(tuple(entries.tolist()), f"slog{bits}(r={r:g}, {exact})")


def _in_e4m3(entries: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entries at the scale, within a factor of two, where e4m3 rounds them best."""
    tops = 16.0 * 2.0 ** (np.arange(64) / 64)
    rounded = [E4M3.decode(E4M3.encode(t * entries)).astype(np.float64) for t in tops]
    errors = [float(np.sum((v / t - entries) ** 2)) for v, t in zip(rounded, tops, strict=True)]
    return rounded[int(np.argmin(errors))]
