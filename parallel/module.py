"""Sequence-parallel attention as a torch module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdsl import targets
from kdsl.errors import InputError, UnsupportedError
from kdsl.orders import Order
from kdsl.parallel.calibration import fitted
from kdsl.parallel.channel import Channel
from kdsl.parallel.chooser import ranked
from kdsl.parallel.cost import Costs
from kdsl.parallel.exchange import Exchanges
from kdsl.parallel.execute import Execution
from kdsl.parallel.home import Home
from kdsl.parallel.local import Local, Operators
from kdsl.parallel.plan import Plan
from kdsl.parallel.topology import Topology
from kdsl.parallel.work import BlockWork, Longs
from kdsl.runtime.builder import device_target
from kdsl.specs import Attention, Partition

Tables = Mapping[str, npt.NDArray[Any]]


class SparseSequenceParallel(torch.nn.Module):
    """Block-sparse attention whose tokens are divided over the ranks of a process group.

    Takes ``q [batch, heads, local tokens, head_dim]`` and ``k, v [batch, kv_heads, ...]``, each
    rank its own stretch of tokens in the model's order (`home`: equal stretches, text on every rank
    with ``replicated_text``), and returns the output of the same tokens; with the spec's
    ``return_lse`` a pair with the log-sum-exp.  The divided attention computes what the spec says,
    for any number of heads, ranks and tokens.

    ``spec`` is the whole attention, or a `Partition` that says more about the ranks.  ``plan`` is
    one of `kdsl.parallel.families`, `split` or `dbsp`; without it the fastest by ``costs`` is taken
    (default: data sheets, or what was fitted).  ``tables`` are values of open tables; `replan`
    takes new ones.  ``local`` makes other kernels than kdsl's (see `kdsl.parallel.local.Local`),
    ``options`` go to `kdsl.build`.  Making one and `replan` are collective over ``group``.

    Errors name the rank: `DistributedError` where there is no process group, where ranks hold
    different plans, masks or sizes, and where one does not answer within ``timeout_s``.

    Gradients go back to every rank's q, k and v, the way back being collective too; not around a
    ring, which ``gradients=True`` leaves out of what is chosen from.  Tokens that live on every
    rank have a gradient on each, whose sum is theirs.
    """

    def __init__(
        self,
        spec: Attention | Partition,
        *,
        group: Any = None,
        plan: Plan | None = None,
        costs: Costs | None = None,
        tables: Tables | None = None,
        home: Home | None = None,
        key_home: Home | None = None,
        local: Local | None = None,
        device: Any = None,
        timeout_s: float = 60.0,
        gradients: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.channel = Channel(group, timeout_s)
        world = self.channel.world
        self.partition = _partition(spec, world)
        self.spec = self.partition.attention
        if self.partition.world != world:
            raise InputError(
                f"a partition for {self.partition.world} ranks in a group of {world}",
                hint=f"Partition(..., world={world})",
            )
        if device is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device, self.costs = torch.device(device), costs
        text = _text(self.partition)
        self.home = home or Home.even(self.spec.query_grid.tokens, world, text)
        alike = self.spec.query_grid == self.spec.key_grid
        own = self.home if alike else Home.even(self.spec.key_grid.tokens, world)
        self.key_home = key_home or own
        self._local, self._options, self._gradients = local, options, gradients
        self.replan(tables, plan)

    def replan(self, tables: Tables | None = None, plan: Plan | None = None) -> Plan:
        """Take other values of open tables, and a plan for them; on every rank at the same time.

        The plan is made from the mask's rows of blocks, the same on every rank, which all ranks
        check.  Returns it.
        """
        spec, values = self.spec, dict(tables or {})
        work = BlockWork.of(spec.rows(values), spec.heads, spec.group_heads)
        if plan is None:
            # Chunks of an all-to-all that overlap kernels are planned for, not carried out yet.
            found = ranked(work, self.costs or self._costs(), chunks=(1,))
            rings = ("ring",) if self._gradients else ()
            plan = next(c.plan for c in found if c.plan.delivery not in rings)
        exchanges = Exchanges(
            plan,
            self.home,
            key_home=self.key_home,
            work=work,
            query_order=_listed(spec.query_order, values),
            key_order=_keys_listed(spec, values),
        )
        self.execution = Execution(
            exchanges,
            work,
            self.channel,
            self._local or Operators(spec, values, **self._options),
            device=self.device,
            with_lse=spec.return_lse,
        )
        return plan

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self.execution.plan

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        """The output of this rank's tokens, like q; a pair with ``return_lse``."""
        out, lse = self.execution(q, k, v)
        return (out, lse) if self.spec.return_lse else out

    def extra_repr(self) -> str:
        """The plan in a line."""
        plan, mesh = self.plan, self.plan.mesh
        return (
            f"{plan.family}, {plan.delivery} keys, {mesh.ulysses} x {mesh.ring} ranks, "
            f"plan {plan.hash[:12]}"
        )

    def _costs(self) -> Costs:
        """What was fitted or data sheets say of the GPU at hand, or an H100.

        Every rank must come to the same: entries of a user's own belong on all machines.
        """
        target = device_target() or targets.get("h100")
        topology = Topology.of(self.partition)
        plain = Costs.of(self.spec, target, topology, replicated=_text(self.partition))
        return fitted(plain, self.partition, target)


def _partition(spec: Attention | Partition, world: int) -> Partition:
    """A spec's ranks: torchrun says how many share a node."""
    if isinstance(spec, Partition):
        return spec
    node = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    fits = 0 < node <= world and world % node == 0
    return Partition(attention=spec, world=world, node=node if fits else world)


def _text(spec: Partition) -> tuple[int, int]:
    """Tokens that live on every rank."""
    grid = spec.attention.query_grid
    if not spec.replicated_text:
        return (0, 0)
    first = 0 if grid.text_at == "start" else grid.tokens - grid.text
    return (first, first + grid.text)


def _listed(order: Order, tables: Tables) -> Longs | None:
    """The token at each stored position, ``[1 or heads, tokens]``."""
    if order.is_identity:
        return None
    return np.stack([np.asarray(part.index(tables), np.int64) for part in order.parts])


def _keys_listed(spec: Attention, tables: Tables) -> Longs | None:
    """The same of keys, by key head."""
    found = _listed(spec.kv_order, tables)
    if found is None or len(found) == 1:
        return found
    for first in range(0, spec.heads, spec.group):
        if not (found[first : first + spec.group] == found[first]).all():
            raise UnsupportedError(
                f"query heads {first} to {first + spec.group - 1} share keys and have several key "
                "orders",
                hint="one key order for each group of heads",
            )
    return found[:: spec.group]
