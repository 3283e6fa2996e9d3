"""q, k and v for several heads from patch features: seeded projections and 3-D RoPE.

No trained weights travel with this example, so the heads are made; the content they look at is
real.  What makes them behave like trained ones: queries and keys share most of a projection (tokens
look for what resembles them), biases that RoPE turns into a preference for near tokens along some
of the axes, and one width for each.  ``calibrate`` measures how peaked the result is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.clip.arrays import Floats
from kdsl.errors import InputError
from kdsl.grid import Grid

HEAD_DIM = 64
SECTIONS = (16, 24, 24)  # dims of a head that turn with frames, height, width: CogVideoX's split
BASE = 10_000.0  # RoPE's slowest wavelength is about 2 pi times this


@dataclass(frozen=True)
class Head:
    """How one head weighs content against position.

    ``near`` is the logit that a token loses at most, about, by standing far away along frames,
    height and width; ``fast`` how many of each section's frequencies, fastest first, carry it (few:
    a narrow neighbourhood).  ``content`` times ``shared`` is about the logit of a token against
    itself through its features, ``shared`` being the part of the query projection that is the key
    projection; ``ahead`` shifts the neighbourhood's centre along the three axes, in tokens.
    """

    name: str
    near: tuple[float, float, float]
    fast: tuple[int, int, int] = (4, 5, 5)
    content: float = 4.0
    shared: float = 0.8
    ahead: tuple[float, float, float] = (0.0, 0.0, 0.0)


HEADS = (
    Head("temporal", near=(0.5, 8.0, 8.0)),
    Head("frame", near=(12.0, 1.0, 1.0), fast=(3, 5, 5)),
    Head("row", near=(3.0, 10.0, 1.0)),
    Head("column", near=(1.0, 2.0, 10.0)),
    Head("local", near=(4.0, 6.0, 6.0), fast=(4, 4, 4), content=2.5),
    Head("slice", near=(9.0, 1.0, 8.0)),
    Head("previous", near=(8.0, 5.0, 5.0), ahead=(-1.0, 0.0, 0.0)),
    Head("global", near=(1.0, 1.0, 1.0), content=9.0, shared=0.9),
)


@dataclass(frozen=True, eq=False)
class Projected:
    """q, k, v, each float32 ``[1, heads, tokens, head_dim]`` in original order, RoPE applied."""

    heads: tuple[Head, ...]
    q: Floats
    k: Floats
    v: Floats


def project(
    features: Floats,
    grid: Grid,
    heads: tuple[Head, ...] = HEADS,
    head_dim: int = HEAD_DIM,
    sections: tuple[int, int, int] = SECTIONS,
    seed: int = 0,
) -> Projected:
    """Make every head's q, k, v from standardised ``features`` ``[tokens, channels]``.

    Raises ``InputError`` where features and grid, or sections and head_dim, do not fit.
    """
    if len(features) != grid.tokens:
        raise InputError(f"{len(features)} feature rows for {grid.tokens} tokens", where=repr(grid))
    if sum(sections) != head_dim or any(part % 2 for part in sections):
        raise InputError(
            f"sections={sections} do not fill head_dim={head_dim} with even parts",
            hint="(16, 24, 24) for 64, (44, 42, 42) for 128",
        )
    tokens = features / np.sqrt((features**2).mean(1, keepdims=True) + 1e-6)  # as a model's RMSNorm
    turns = angles(grid.coordinates(), sections)
    rng = np.random.default_rng(seed)
    made = [_head(head, tokens, turns, sections, rng) for head in heads]
    q, k, v = (np.stack(part)[None] for part in zip(*made, strict=True))
    return Projected(heads, q, k, v)


def angles(
    coordinates: npt.NDArray[np.int32], sections: tuple[int, int, int] = SECTIONS
) -> npt.NDArray[np.float64]:
    """RoPE angles ``[tokens, head_dim // 2]`` of original ``coordinates`` ``[3, tokens]``."""
    parts = [
        np.outer(axis, frequencies(dims // 2))
        for axis, dims in zip(coordinates, sections, strict=True)
    ]
    return np.concatenate(parts, 1)


def frequencies(pairs: int) -> npt.NDArray[np.float64]:
    """Radians a token of each pair of dims, fastest (1.0) first."""
    return BASE ** (-np.arange(pairs) / max(pairs, 1))


def rope(x: Floats, turns: npt.NDArray[np.float64]) -> Floats:
    """Turn pair i, dims (2i, 2i+1), of ``x`` ``[tokens, head_dim]`` by ``turns[:, i]``."""
    pairs = np.ascontiguousarray(x, np.float32).view(np.complex64)
    turned = pairs * np.exp(1j * turns).astype(np.complex64)
    return np.asarray(turned.view(np.float32))


def _head(
    head: Head,
    features: Floats,
    turns: npt.NDArray[np.float64],
    sections: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[Floats, Floats, Floats]:
    dim = sum(sections)
    key, other, value = rng.standard_normal((3, features.shape[1], dim)) / np.sqrt(dim)
    query = head.shared * key + np.sqrt(1 - head.shared**2) * other
    # a token's key has a squared norm of about its channel count: bring it to the wanted logit
    gain = np.sqrt(head.content * np.sqrt(dim) / features.shape[1])
    q = gain * (features @ query) + _bias(head, sections, shifted=True)
    k = gain * (features @ key) + _bias(head, sections, shifted=False)
    return (
        rope(q.astype(np.float32), turns),
        rope(k.astype(np.float32), turns),
        (features @ value).astype(np.float32),
    )


def _bias(head: Head, sections: tuple[int, int, int], *, shifted: bool) -> npt.NDArray[np.float64]:
    """The constant part of q (``shifted`` by ``ahead``) or k before RoPE, ``[head_dim]``.

    After RoPE the two give ``sum of near / fast * cos(frequency * (key - query - ahead))``.
    """
    parts = []
    for near, fast, ahead, dims in zip(head.near, head.fast, head.ahead, sections, strict=True):
        logit = np.where(np.arange(dims // 2) < fast, near / fast, 0)
        amplitude = np.sqrt(logit * np.sqrt(sum(sections)))
        phase = frequencies(dims // 2) * (ahead if shifted else 0)
        parts.append(np.column_stack([amplitude * np.cos(phase), amplitude * np.sin(phase)]))
    return np.concatenate(parts).reshape(-1)
