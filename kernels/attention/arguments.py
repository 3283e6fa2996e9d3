"""Types of kernel arguments, as a launch with aligned, contiguous tensors finds them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdsl.kernels.attention import tables as leaf_tables
from kdsl.kernels.attention.config import table_dtype
from kdsl.specs import Attention

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Triton's names of dtypes."""
POINTERS = {"int32": "*i32", "int16": "*i16", "uint8": "*u8", "int8": "*i8"}


def add_tables(
    spec: Attention, signature: dict[str, Any], divisible: list[Any], more: int = 0
) -> None:
    """The tuple of tables that the leaves read, and of some more int32 ones."""
    held = [POINTERS[table_dtype(t)] for t in leaf_tables.tables(spec)] + ["*i32"] * more
    signature["tables"] = tuple(held)
    divisible += [("tables", i) for i in range(len(held))]


def add_integers(
    integers: Mapping[str, int | None],
    signature: dict[str, Any],
    constants: dict[Any, Any],
    divisible: list[Any],
) -> None:
    """Integer arguments, None where they are not known.

    Triton makes a constant of an integer that is 1, and notes which ones are multiples of 16.
    """
    for name, value in integers.items():
        if value == 1:
            constants[name] = 1
            continue
        signature[name] = "i32" if value is None or value < 2**31 else "i64"
        if value is not None and value % 16 == 0:
            divisible.append(name)
