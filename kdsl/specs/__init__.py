"""Specs: what a kernel computes, as frozen values.

Equal by structure, one canonical JSON form, two hashes: ``fingerprint`` of the whole, and
``program`` of what makes the generated program another one (no sizes, constants or tables).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdsl.errors import SpecError, reading
from kdsl.specs.attention import HEAD_DIMS, Attention
from kdsl.specs.common import DTYPES, as_array, canonical, digest
from kdsl.specs.matmul import Matmul
from kdsl.specs.partition import LINKS, Partition
from kdsl.specs.permute import Permute
from kdsl.specs.prepass import Prepass
from kdsl.specs.quantize import Quantize

__all__ = [
    "DTYPES",
    "HEAD_DIMS",
    "LINKS",
    "Attention",
    "Matmul",
    "Partition",
    "Permute",
    "Prepass",
    "Quantize",
    "Spec",
    "as_array",
    "canonical",
    "digest",
    "from_json",
]

Spec = Attention | Permute | Partition | Quantize | Matmul | Prepass
_SPECS: dict[str, Any] = {
    "attention": Attention,
    "permute": Permute,
    "partition": Partition,
    "quantize": Quantize,
    "matmul": Matmul,
    "prepass": Prepass,
}


@reading("spec")
def from_json(value: Mapping[str, Any]) -> Spec:
    """Any spec from its canonical form."""
    if value.get("op") not in _SPECS:
        raise SpecError(f"unknown op {value.get('op')!r}", hint=" or ".join(map(repr, _SPECS)))
    spec: Spec = _SPECS[value["op"]].from_json(value)
    return spec
