"""Configurations of the attention template: what may be chosen, what is legal, what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdsl.errors import ConfigError
from kdsl.expr import Table
from kdsl.settings import checked
from kdsl.specs import Attention

PORTABLE: dict[str, tuple[Any, ...]] = {
    "template": ("portable",),
    "block_m": (16, 32, 64, 128),
    "block_n": (16, 32, 64, 128),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
    "loads": ("pointer", "descriptor"),
    "overlap": ("late",),
    "pingpong": (False,),
    "workers": (0,),
    "extra_keys": (0,),
    "masks": ("leaf",),
}
"""Choices of the portable template by name; `legal` says which go together for a spec and a GPU."""

HOPPER: dict[str, tuple[Any, ...]] = {
    "template": ("hopper",),
    "block_m": (64, 128),
    "block_n": (64, 128),
    "num_warps": (4, 8),
    "num_stages": (1, 2, 3, 4),
    "loads": ("descriptor",),
    "overlap": ("late", "early"),
    "pingpong": (False, True),
    "workers": (0, 1, 2, 3),
    "extra_keys": (0, 1),
    "masks": ("leaf", "bits"),
}
"""Choices of the Hopper template."""

SPACES = {"portable": PORTABLE, "hopper": HOPPER}
OFFERED = ("portable", "hopper")
"""What a forward kernel is chosen from unless somebody asks for one: `build(backend=...)`."""
OFFERED_BACKWARD = ("portable", "hopper")
"""What backward kernels are chosen from then."""
BACKENDS = {"portable": "triton", "hopper": "gluon"}
"""What `build(backend=...)` calls each template."""


def space_of(templates: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Choices of some templates together."""
    spaces = [SPACES[name] for name in templates]
    return {
        name: tuple(dict.fromkeys(choice for space in spaces for choice in space[name]))
        for name in PORTABLE
    }


ARCHITECTURES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""Compute capabilities the portable template is written and compiled for."""

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Config:
    """One way to run a kernel: the template, its tile of queries and keys, warps, pipeline depth.

    ``num_warps`` are those that compute.  The rest is the Hopper template's: ``overlap``
    is which products run beside the softmax of a step ("late": the values' of the step before;
    "early": also the scores' of the step after), ``pingpong`` lets the two warpgroups' products
    take turns, ``workers`` are programs a multiprocessor that take tiles from a counter (0: one
    program a tile), ``num_stages`` steps of values are held and ``extra_keys`` more of keys;
    partial blocks are masked by the ``masks`` leaf, or by bits that it made before the call.
    """

    block_m: int = 128
    block_n: int = 64
    num_warps: int = 8
    num_stages: int = 2
    loads: Literal["pointer", "descriptor"] = "pointer"
    template: Literal["portable", "hopper"] = "portable"
    overlap: Literal["late", "early"] = "late"
    pingpong: bool = False
    workers: int = 0
    extra_keys: int = 0
    masks: Literal["leaf", "bits"] = "leaf"

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Config:
        """A configuration from its fields; ConfigError names what is unknown."""
        template = value.get("template", "portable")
        if template not in SPACES:
            raise ConfigError(f"template={template!r}", hint=" or ".join(map(repr, SPACES)))
        return Config(**checked(value, SPACES[template], f" in the {template} template"))


def table_dtype(table: Table) -> str:
    """What a table's entries are on the device.

    Those of tokens are int32, which is loaded ahead and spreads over a tile without a detour
    through shared memory.  Maps of blocks are large, and one entry a tile is read: they stay.
    """
    return table.dtype if len(table.shape) == 3 else "int32"


def head_parts(head_dim: int) -> tuple[int, int]:
    """A head dimension as two powers of two (the second may be 0): 80 = 64 + 16."""
    first = 1 << (head_dim.bit_length() - 1)
    return first, head_dim - first


def describable(spec: Attention) -> bool:
    """Whether blocks are contiguous rows, as tensor descriptors need."""
    return spec.stored or (spec.query_order.is_identity and spec.kv_order.is_identity)
