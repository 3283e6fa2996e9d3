"""Roundings of the dtypes that kernels write, for the bounds that results are checked with."""

UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
"""Half a unit in the last place of 1: the most that rounding changes a normal number, of itself."""
