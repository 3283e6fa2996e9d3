"""A layer and a denoising step: every product of the layer timed beside the attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.virtual.cases import Model
from benchmarks.virtual.points import Timed, verdict
from benchmarks.virtual.shards import Run, Timer


def products(model: Model, tokens: int) -> dict[str, tuple[int, int, int]]:
    """(rows, inner, columns) of a layer's linear layers on a rank with so many tokens.

    q, k, v and output of the attention; with text those of the cross attention too, whose keys come
    from the text; the two of the feed-forward.
    """
    wide = model.hidden
    out = {f"attention {name}": (tokens, wide, wide) for name in ("q", "k", "v", "out")}
    if model.text:
        out |= {f"cross {name}": (tokens, wide, wide) for name in ("q", "out")}
        out |= {f"cross {name}": (model.text, wide, wide) for name in ("k", "v")}
    out["feed in"] = (tokens, wide, model.feed)
    out["feed out"] = (tokens, model.feed, wide)
    return out


def rest_us(model: Model, world: int, device: Any, timer: Timer) -> float:
    """Microseconds of a rank's linear layers and of its cross attention.

    Norms, rotations and sums, which are bound by bytes, are left out.
    """
    import torch
    from torch.nn.functional import linear, scaled_dot_product_attention

    tokens, dtype = -(-model.tokens // world), getattr(torch, model.dtype)

    def made(*shape: int) -> Any:
        return torch.randn(shape, dtype=dtype, device=device)

    shapes = list(products(model, tokens).values())
    held = {shape: (made(*shape[:2]), made(*shape[:0:-1])) for shape in set(shapes)}
    runs: dict[str, Run] = {
        str(shape): (lambda x=x, w=w: linear(x, w)) for shape, (x, w) in held.items()
    }
    if model.text:
        q = made(1, model.heads, tokens, model.head_dim)
        k = made(1, model.heads, model.text, model.head_dim)
        runs["cross"] = lambda: scaled_dot_product_attention(q, k, k)
    took = timer(runs)
    return sum(took[str(shape)] for shape in shapes) + took.get("cross", 0.0)


def lines(model: Model, case: str, plans: Sequence[Timed], rest: float) -> Iterator[str]:
    """A layer's and a step's time with the chosen plan, and the gain over the baselines."""
    found = verdict(plans)
    gains = {t.name: (rest + t.us["1.0"]) / (rest + found.us) for t in plans if not t.ours}
    layer = (rest + found.us) / 1e3
    said = ", ".join(f"{name} {gain:.3f}x" for name, gain in gains.items())
    yield (
        f"{case}: layer {layer:.3f} ms ({rest / 1e3:.3f} of it products), step of {model.layers} "
        f"layers {layer * model.layers:.1f} ms; end to end over {said}"
    )
