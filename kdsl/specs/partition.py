"""How one attention is divided over the ranks of a group: what there is to plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kdsl.errors import SpecError, reading
from kdsl.expr.tables import Table
from kdsl.specs.attention import Attention
from kdsl.specs.common import digest, positive, whole

LINKS = ("nvlink", "pcie")
"""What joins the GPUs of a node."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One attention on ``world`` ranks; a plan of `kdsl.parallel` says how.

    ``node`` ranks share a node and its ``link`` (default: all of them); ``replicated_text`` keeps
    text tokens on every rank instead of dividing them with the others.  The divided attention
    computes what ``attention`` computes.
    """

    attention: Attention
    world: int
    node: int | None = None
    link: str = "nvlink"
    replicated_text: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.attention, Attention):
            raise SpecError(f"attention={self.attention!r}", hint="kdsl.Attention(...)")
        object.__setattr__(self, "world", positive(self.world, "world"))
        node = self.world if self.node is None else positive(self.node, "node")
        object.__setattr__(self, "node", node)
        if node > self.world or self.world % node:
            raise SpecError(
                f"{self.world} ranks on nodes of {node}", hint="nodes of equally many ranks"
            )
        if self.link not in LINKS:
            raise SpecError(f"link={self.link!r}", hint=" or ".join(map(repr, LINKS)))
        object.__setattr__(self, "replicated_text", bool(self.replicated_text))
        if self.replicated_text and self.attention.query_grid != self.attention.key_grid:
            raise SpecError(
                "replicated_text is for self-attention", hint="Attention(tokens=grid, ...)"
            )

    @property
    def ranks_per_node(self) -> int:
        """Ranks that share a node."""
        return self.node or self.world

    @property
    def dtype(self) -> str:
        """Of the attention's tensors."""
        return self.attention.dtype

    @property
    def head_dim(self) -> int:
        """Of the attention."""
        return self.attention.head_dim

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table of the attention."""
        return self.attention.tables

    @property
    def open_tables(self) -> tuple[Table, ...]:
        """Tables whose values come with the call."""
        return self.attention.open_tables

    def to_json(self) -> dict[str, Any]:
        """The canonical form."""
        return {
            "op": "partition",
            "attention": self.attention.to_json(),
            "world": self.world,
            "node": self.node,
            "link": self.link,
            "replicated_text": self.replicated_text,
        }

    @staticmethod
    @reading("partition spec")
    def from_json(value: Mapping[str, Any]) -> Partition:
        """The spec written by `to_json`."""
        whole(value, {"op", *(f.name for f in fields(Partition))}, "partition spec")
        held = {name: v for name, v in value.items() if name not in ("op", "attention")}
        return Partition(attention=Attention.from_json(value["attention"]), **held)

    @property
    def fingerprint(self) -> str:
        """Identity of the whole spec."""
        return digest(self.to_json())

    @property
    def program(self) -> str:
        """What plans are comparable within: the attention's program, ranks, nodes and links."""
        same = [self.world, self.ranks_per_node, self.link, self.replicated_text]
        return digest(["partition", self.attention.program, *same])
