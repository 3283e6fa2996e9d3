"""How ranks are joined: links inside a node and between nodes, and presets to simulate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, reading
from kdsl.specs import Partition
from kdsl.specs.common import positive, whole

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Link:
    """``alpha_us`` microseconds for a message, ``bytes_per_us`` in each direction of one GPU."""

    alpha_us: float
    bytes_per_us: float

    def __post_init__(self) -> None:
        if not (self.alpha_us >= 0 and self.bytes_per_us > 0):
            raise InputError(f"{self!r}", hint="a latency of 0 or more, a rate above 0")

    def us(self, size: float) -> float:
        """Time of one message of a size in bytes; nothing for none."""
        return self.alpha_us + size / self.bytes_per_us if size else 0.0


NVLINK = Link(10.0, 300e3)
"""Two thirds of NVLink 4's 450 GB/s a direction.  An assumption until fitted."""
PCIE = Link(15.0, 25e3)
"""Four fifths of the 32 GB/s of PCIe 4.0 x16.  An assumption until fitted."""
NETWORK = Link(20.0, 40e3)
"""Four fifths of 400 Gbit/s a GPU.  An assumption until fitted."""
LINKS: Mapping[str, Link] = {"nvlink": NVLINK, "pcie": PCIE}


@dataclass(frozen=True)
class Topology:
    """``world`` ranks on nodes of ``node`` neighbours each; both links work at the same time."""

    world: int
    node: int
    inside: Link = NVLINK
    between: Link = NETWORK

    def __post_init__(self) -> None:
        positive(self.world, "world")
        if positive(self.node, "node") > self.world or self.world % self.node:
            raise InputError(f"{self.world} ranks on nodes of {self.node}")

    @staticmethod
    def of(spec: Partition) -> Topology:
        """The preset of a spec's nodes and links."""
        return Topology(spec.world, spec.ranks_per_node, LINKS[spec.link])

    def link(self, source: int, dest: int) -> Link:
        """What joins two ranks."""
        return self.inside if source // self.node == dest // self.node else self.between

    def all_to_all_us(self, sizes: npt.NDArray[Any]) -> Floats:
        """When each rank has sent and received everything of one all-to-all, from its start.

        ``sizes``: bytes ``[senders, receivers]``.  Each rank sends and receives at its links' rates
        at once; every partner costs a message's latency once, partners together: NCCL groups them.
        """
        place = np.arange(self.world) // self.node
        near = place[:, None] == place[None]
        out = np.zeros(self.world)
        for link, mask in ((self.inside, near), (self.between, ~near)):
            held = np.where(mask, sizes, 0)
            most = np.maximum(held.sum(axis=0), held.sum(axis=1))
            out = np.maximum(out, np.where(most > 0, link.alpha_us, 0) + most / link.bytes_per_us)
        return out

    def to_json(self) -> dict[str, Any]:
        """As JSON; numbers as they are."""
        return asdict(self)

    @staticmethod
    @reading("topology")
    def from_json(value: Mapping[str, Any]) -> Topology:
        """The topology written by `to_json`."""
        whole(value, {"world", "node", "inside", "between"}, "topology")
        links = (Link(**value["inside"]), Link(**value["between"]))
        return Topology(value["world"], value["node"], *links)


def presets(world: int) -> dict[str, Topology]:
    """By name: one NVLink node, one PCIe node, nodes of eight joined by a network."""
    out = {
        "nvlink": Topology(world, world, NVLINK),
        "pcie": Topology(world, world, PCIE),
    }
    if world > 8 and world % 8 == 0:
        out["nodes of 8"] = Topology(world, 8, NVLINK)
    return out


def fit_link(samples: Sequence[tuple[float, float]]) -> Link:
    """The link that explains (bytes, microseconds) of single messages, by relative least squares.

    InputError for fewer than two sizes.
    """
    if len({size for size, _ in samples}) < 2:
        raise InputError("messages of one size do not tell latency from rate", hint="two or more")
    size, took = np.asarray(samples, np.float64).T
    alpha, slope = nonnegative(np.stack([np.ones_like(size), size], axis=1), took)
    if slope <= 0:
        raise InputError("times that do not grow with the size", hint="larger messages")
    return Link(float(alpha), float(1 / slope))


def nonnegative(columns: Floats, took: Floats) -> Floats:
    """Weights of 0 or more whose sums explain some times, by relative least squares.

    A weight that would be negative is dropped, the most negative first, and the rest fitted again.
    """
    scaled, ones = columns / took[:, None], np.ones(len(took))
    out, active = np.zeros(columns.shape[1]), list(range(columns.shape[1]))
    while active:
        found = np.linalg.lstsq(scaled[:, active], ones, rcond=None)[0]
        if (found >= 0).all():
            out[active] = found
            break
        active.pop(int(found.argmin()))
    return out
