"""Run the Hopper template: descriptors, the counter, one launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdsl.kernels.attention.config import Config, head_parts
from kdsl.kernels.attention.hopper.config import (
    constants,
    layout_of,
    options,
    stores_by_descriptor,
)
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.attention.launch import Lists

LOG2E = 1.4426950408889634
ALIGNMENT = 16
KEPT_LAUNCHES = 64
"""Prepared launches of one set of lists: they differ in batch, strides and alignment."""


def describable_tensors(tensors: tuple[Tensor, ...]) -> bool:
    """Whether TMA can fetch from tensors: unit columns, addresses and strides of 16 bytes."""
    for x in tensors:
        steps = [n * x.element_size() for n in x.stride()[:-1]]
        if x.stride(-1) != 1 or x.data_ptr() % ALIGNMENT:
            return False
        if any(n % ALIGNMENT or n <= 0 for n in steps):
            return False
    return True


def describe(x: Tensor, rows: int, parts: tuple[int, int]) -> tuple[Any, Any]:
    """Descriptors of two parts of the columns (the second may be 0) of ``[batch, heads, tokens,
    head_dim]``, `rows` rows a tile."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    shape, strides = list(x.shape), list(x.stride())
    first, second = (
        TensorDescriptor(x, shape, strides, [1, 1, rows, n], layout_of(n)) if n else None
        for n in parts
    )
    return first, second


@dataclass(frozen=True)
class Prepared:
    """A compiled kernel with all arguments of a call but the tensors that change from one to the
    next: what a call like it has left to do is a few microseconds, where Triton's own takes tens.
    """

    kernel: Any
    programs: int
    tables: tuple[Tensor, ...]
    arguments: tuple[Any, ...]
    moving: tuple[tuple[int, str], ...]
    """Places of the arguments that change, and the tensors they are or describe."""

    @staticmethod
    def of(kernel: Any, names: Sequence[str], values: Mapping[str, Any], programs: int) -> Prepared:
        """Of a call that was made: `values` by name, `names` in the order the kernel takes them."""
        roles = {f"{n}{tail}": n for n in "qkvo" for tail in ("", "_tail")}
        roles |= {"lse": "lse", "counter": "counter"}
        moving = [(i, roles[n]) for i, n in enumerate(names) if n in roles]
        moving = [(i, role) for i, role in moving if values[names[i]] is not None]
        arguments = [values[n] for n in names]
        for i, _ in moving:
            # The tensors themselves are the caller's, to be freed when he lets go of them.
            arguments[i] = over(arguments[i], None) if hasattr(arguments[i], "base") else None
        return Prepared(kernel, programs, values["tables"], tuple(arguments), tuple(moving))

    def __call__(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        """Launch on other tensors of the same shapes, strides and alignment."""
        from triton import knobs

        arguments = list(self.arguments)
        for place, role in self.moving:
            held = arguments[place]
            arguments[place] = over(held, tensors[role]) if hasattr(held, "base") else tensors[role]
        kernel, grid = self.kernel, (self.programs, 1, 1)
        kernel.run(
            *grid,
            stream,
            kernel.function,
            kernel.packed_metadata,
            kernel.launch_metadata(grid, stream, *arguments),
            knobs.runtime.launch_enter_hook,
            knobs.runtime.launch_exit_hook,
            *arguments,
        )


def over(descriptor: Any, x: Tensor | None) -> Any:
    """A descriptor of another tensor with the same shape and strides."""
    made = object.__new__(type(descriptor))
    made.__dict__.update(descriptor.__dict__)
    made.base = x
    return made


def launch(
    module: Any,
    spec: Attention,
    config: Config,
    held: Lists,
    tensors: tuple[Tensor, Tensor, Tensor],
    tables: tuple[Tensor, ...],
    out: Tensor,
    lse: Tensor,
    kind: Any = None,
) -> None:
    """Fill ``out``, whose columns lie side by side, and ``lse``, if the spec asks for it."""
    q, k, v = tensors
    stream = stream_of(q.device)
    moving = {"q": q, "k": k, "v": v, "o": out, "lse": lse, "counter": held.counter(stream)}
    key = kind or (
        module, config, q.shape[0], q.stride(), k.stride(), v.stride(), out.stride(),
        out.data_ptr() % ALIGNMENT, lse.data_ptr() % ALIGNMENT,
    )  # fmt: skip
    ready = held.prepared.get(key)
    if ready is not None and ready.tables is tables:
        ready(moving, stream)
        return
    programs, values = arguments_of(spec, config, held, moving, tables)
    fn = module.attention_forward
    kernel = fn[(programs,)](**values, **options(config))
    if hasattr(kernel, "run") and hasattr(kernel, "packed_metadata"):
        if len(held.prepared) >= KEPT_LAUNCHES:
            held.prepared.clear()
        held.prepared[key] = Prepared.of(kernel, fn.arg_names, values, programs)


def arguments_of(
    spec: Attention,
    config: Config,
    held: Lists,
    moving: Mapping[str, Tensor],
    tables: tuple[Tensor, ...],
) -> tuple[int, dict[str, Any]]:
    """Programs to launch, and every argument of the kernel by name."""
    q, k, v, out = (moving[name] for name in "qkvo")
    batch, heads, queries, head_dim = q.shape
    described = stores_by_descriptor(spec) and describable_tensors((out,))
    n = config.block_n
    values: dict[str, Any] = {}
    for name, x, rows in (("q", q, 64), ("k", k, n), ("v", v, n), ("o", out, 64)):
        parts = describe(x, rows, head_parts(head_dim)) if name != "o" or described else (x, None)
        values |= {name: parts[0], f"{name}_tail": parts[1]}
    total = batch * heads * held.rows * (spec.block[0] // config.block_m)
    programs = total
    if config.workers and q.device.type == "cuda":
        programs = min(total, config.workers * multiprocessors(q.device))
    for name in ("start", "full", "partial", "index", "tiles"):
        values[name] = getattr(held, name)
    strides = (0, 0, 0) if described else out.stride()[:3]
    values |= dict(
        zip(("o_b", "o_h", "o_n", "list_b", "list_h"), (*strides, *held.strides), strict=True)
    )
    return programs, {
        **values,
        "lse": moving["lse"],
        "counter": moving["counter"],
        "tables": tables,
        "heads": heads,
        "rows": held.rows,
        "queries": queries,
        "keys": k.shape[2],
        "total": total,
        "scale_log2": spec.softmax_scale * LOG2E,
        **constants(spec, config, described),
    }


def multiprocessors(device: Any) -> int:
    """How many a device has."""
    import torch

    # torch keeps the properties of devices that it was asked about.
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def stream_of(device: Any) -> int:
    """The current stream of a CUDA device; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    from triton.runtime import driver

    return int(driver.active.get_current_stream(device.index))
