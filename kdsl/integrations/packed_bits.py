"""Rows of blocks as bits in safetensors files: one of their own, or arrays of a plan.

Two maps, of full and of partial blocks, ``[batch, heads, rows, bytes]`` with 8 columns a byte, the
first in the lowest bit (`Blocks.pack`), and ``sizes``: block_q, block_k, queries, keys.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from kdsl.blocks import Blocks, unpack
from kdsl.errors import InputError, StoreError
from kdsl.integrations.required import required
from kdsl.plans import Payload, Plan

AXES = ("batch", "heads", "rows", "bytes")


def to_payload(rows: Blocks, name: str = "rows") -> dict[str, Payload]:
    """Arrays for `Plan`, ``<name>.full``, ``<name>.partial`` and ``<name>.sizes``.

    Their axes bear the name too: rows of several sizes can share a plan.
    """
    full, partial = rows.pack()
    sizes = np.array([*rows.block, rows.queries, rows.keys], np.int64)
    axes = tuple(f"{name}.{axis}" for axis in AXES)
    return {
        f"{name}.full": Payload(axes, full),
        f"{name}.partial": Payload(axes, partial),
        f"{name}.sizes": Payload((f"{name}.sides",), sizes),
    }


def from_plan(plan: Plan, name: str = "rows") -> Blocks:
    """The rows that `to_payload` put into a plan."""
    return _rows({k: plan[f"{name}.{k}"] for k in ("full", "partial", "sizes")}, f"plan {name!r}")


def save(rows: Blocks, path: str | os.PathLike[str]) -> None:
    """Write a file with the three arrays and nothing else."""
    numpy = required("safetensors.numpy", "safetensors")
    arrays = {n.partition(".")[2]: p.values for n, p in to_payload(rows).items()}
    data = numpy.save({n: np.ascontiguousarray(x) for n, x in arrays.items()})
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise StoreError(f"the rows cannot be written: {error}", where=str(path)) from error


def load(path: str | os.PathLike[str]) -> Blocks:
    """The rows that `save` wrote; StoreError where the file holds something else."""
    numpy = required("safetensors.numpy", "safetensors")
    from safetensors import SafetensorError

    try:
        arrays = numpy.load(Path(path).read_bytes())
    except (OSError, SafetensorError) as error:
        raise StoreError(f"the rows cannot be read: {error}", where=str(path)) from error
    if set(arrays) != {"full", "partial", "sizes"}:
        raise StoreError(
            f"the file holds {', '.join(sorted(arrays))}",
            where=str(path),
            hint="full, partial, sizes; kdsl.plans.load and from_plan for a plan",
        )
    return _rows(arrays, str(path))


def _rows(arrays: dict[str, Any], where: str) -> Blocks:
    full, partial, sizes = (arrays[n] for n in ("full", "partial", "sizes"))
    if sizes.shape != (4,) or sizes.dtype.kind not in "iu" or (sizes[:2] <= 0).any():
        raise StoreError(f"sizes {sizes.tolist()}", where=where, hint="block_q, block_k, q, k")
    height, width, queries, keys = map(int, sizes)
    columns = -(-keys // width)
    wanted = (-(-queries // height), -(-columns // 8))
    for bits in (full, partial):
        if bits.dtype != np.uint8 or bits.ndim != 4 or bits.shape[2:] != wanted:
            raise StoreError(
                f"bits of {bits.dtype} and shape {bits.shape}",
                where=where,
                hint=f"uint8 [batch, heads, {wanted[0]}, {wanted[1]}]",
            )
    try:
        return unpack(full, partial, (height, width), queries, keys)
    except InputError as error:
        raise StoreError(error.what, where=where, hint=error.hint) from error
