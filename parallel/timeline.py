"""When every rank computes, waits and sends: one attention played through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdsl.parallel.mesh import Mesh
from kdsl.parallel.topology import Floats
from kdsl.parallel.work import Longs

KINDS = ("copy", "input", "compute", "pass", "output")


@dataclass(frozen=True, slots=True)
class Event:
    """Something on one rank from ``start_us`` to ``end_us``; ``step`` counts ring steps, or chunks.

    ``input`` and ``output`` are the all-to-alls, ``copy`` is packing and unpacking for them,
    ``pass`` a chunk of keys coming in.
    """

    rank: int
    kind: str
    step: int
    start_us: float
    end_us: float


@dataclass(frozen=True, eq=False)
class Timeline:
    """One attention on all ranks.  ``end_us``: when each has its output."""

    end_us: Floats
    compute_us: Floats
    """Time that each rank computes."""
    events: tuple[Event, ...]

    @property
    def us(self) -> float:
        """When the last one is done."""
        return float(self.end_us.max(initial=0.0))

    @property
    def idle(self) -> float:
        """Share of all ranks' time that no kernel runs in."""
        return 1 - float(self.compute_us.mean()) / self.us if self.us else 0.0

    @property
    def ratio(self) -> float:
        """The end over what perfectly even work without any traffic would take."""
        mean = float(self.compute_us.mean())
        return self.us / mean if mean else 1.0


def ring_end(
    cells_us: Floats, mesh: Mesh, passes_us: Floats, begin_us: Floats | None = None
) -> Floats:
    """When each rank has finished all steps of its ring: see `ring_steps`."""
    *_, (_, end) = ring_steps(cells_us, mesh, passes_us, begin_us)
    return end


def ring_steps(
    cells_us: Floats, mesh: Mesh, passes_us: Floats, begin_us: Floats | None = None
) -> Iterator[tuple[Floats, Floats]]:
    """Start and end of every step on every rank.

    ``cells_us`` ``[world, steps]`` are kernel times, ``passes_us`` ``[world, steps - 1]`` (or more)
    how long rank p takes to send on what it worked on in a step.  A pass begins when both partners
    are in the step, and runs beside the kernel; a rank goes on when its kernel, what it sends and
    what it receives are done.  So a delay reaches a neighbour a step, not everybody at once.
    """
    world, steps = cells_us.shape
    up, down = _neighbours(mesh)
    start = np.zeros(world) if begin_us is None else begin_us
    for step in range(steps):
        end = start + cells_us[:, step]
        yield start, end
        if step + 1 < steps:
            sent = np.maximum(start, start[up]) + passes_us[:, step]
            start = np.maximum(end, np.maximum(sent, sent[down]))


def _neighbours(mesh: Mesh) -> tuple[Longs, Longs]:
    """The rank that each one sends to, and the one it hears from."""
    rings = [mesh.ring_group(p) for p in range(mesh.world)]
    places = [mesh.r_of(p) for p in range(mesh.world)]
    up = [ring[(r + 1) % mesh.ring] for ring, r in zip(rings, places, strict=True)]
    down = [ring[(r - 1) % mesh.ring] for ring, r in zip(rings, places, strict=True)]
    return np.asarray(up, np.int64), np.asarray(down, np.int64)
