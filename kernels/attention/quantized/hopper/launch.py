"""Arguments of the quantized Hopper template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.hopper.config import layout_of as output_layout
from kdsl.kernels.attention.hopper.config import stores_by_descriptor
from kdsl.kernels.attention.hopper.launch import LOG2E, describable_tensors
from kdsl.kernels.attention.quantized.hopper.config import code_layout, constants
from kdsl.kernels.launching.place import multiprocessors
from kdsl.specs import Attention

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.attention.launch import Lists


def arguments_of(
    spec: Attention,
    config: Config,
    held: Lists,
    moving: Mapping[str, Tensor],
    tables: tuple[Tensor, ...],
) -> tuple[int, dict[str, Any]]:
    """Programs to launch, and every argument of the kernel by name."""
    q, k, v, out = (moving[name] for name in "qkvo")
    batch, heads, queries, d = q.shape
    described = stores_by_descriptor(spec) and describable_tensors((out,))
    n = config.block_n
    total = batch * heads * held.rows * (spec.block[0] // config.block_m)
    programs = total
    if config.workers and q.device.type == "cuda":
        programs = min(total, config.workers * multiprocessors(q.device))
    strides = (0, 0, 0) if described else out.stride()[:3]
    steps = zip(("o_b", "o_h", "o_n", "list_b", "list_h"), (*strides, *held.strides), strict=True)
    return programs, {
        **{name: moving[name] for name in ("lse", "counter", "q_scale", "k_scale", "v_scale")},
        **{name: getattr(held, name) for name in ("start", "full", "partial", "index", "tiles")},
        **dict(steps),
        "q": _tiles(q, (64, d), code_layout(d)),
        "k": _tiles(k, (n, d), code_layout(d)),
        "v": _tiles(v, (d, n), code_layout(n)),
        "o": _tiles(out, (64, d), output_layout(d)) if described else out,
        "tables": tables,
        "heads": heads,
        "rows": held.rows,
        "queries": queries,
        "keys": k.shape[2],
        "total": total,
        "q_groups": moving["q_scale"].shape[2],
        "k_groups": moving["k_scale"].shape[2],
        "scale_log2": spec.softmax_scale * LOG2E,
        **constants(spec, config, described),
    }


def _tiles(x: Tensor, tile: tuple[int, int], layout: Any) -> Any:
    """A descriptor of tiles of the last two axes."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, *tile], layout)
