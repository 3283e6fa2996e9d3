"""Memory of blocks of real models at several bits: ``python -m benchmarks memory``.

Bytes of all weights of a Flux.1 double and single block and of a Wan2.1-14B block, computed on
torch's meta device.  With a GPU each block is also run on its model's tokens, and the peak that
torch's allocator saw is beside it.  Weights are random: sizes do not depend on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import rows
from kdsl.nn import QuantLinear, Scheme, w4a8, w8a8

SCHEMES: dict[str, Scheme | None] = {
    "bf16": None, "fp8": w8a8("fp8"), "w4": w4a8(4), "w3": w4a8(3),
}  # fmt: skip


class Attention(nn.Module):
    """Projections of queries and of what they look at, and the product of both."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)

    def looked(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q of x, k and v of what it sees: ``[batch, heads, tokens, head_dim]``."""
        return self._heads(self.to_q(x)), self._heads(self.to_k(seen)), self._heads(self.to_v(seen))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Tokens after attention over ``seen``."""
        q, k, v = self.looked(x, seen)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Up, GELU, down."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inside), nn.Linear(inside, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``[..., width]``."""
        return self.down(functional.gelu(self.up(x), approximate="tanh"))


def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """A layer norm with modulation."""
    return functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class FluxDouble(nn.Module):
    """Flux.1's block of two streams: 4,096 tokens of the picture, 512 of the text."""

    tokens = (4096, 512)

    def __init__(self, width: int = 3072, heads: int = 24) -> None:
        super().__init__()
        self.width = width
        self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(2))
        self.attentions = nn.ModuleList(Attention(width, heads) for _ in range(2))
        self.feeds = nn.ModuleList(FeedForward(width, 4 * width) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        """Both streams."""
        held = [m(functional.silu(condition))[:, None].chunk(6, -1) for m in self.modulations]
        streams, n = [x, text], x.shape[1]
        inside = [normed(s, h[0], h[1]) for s, h in zip(streams, held, strict=True)]
        looked = [a.looked(y, y) for a, y in zip(self.attentions, inside, strict=True)]
        q, k, v = (torch.cat(pair, 2) for pair in zip(*looked, strict=True))
        del looked, inside
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        del q, k, v
        out = []
        for s, part, h, a, f in zip(
            streams, (y[:, :n], y[:, n:]), held, self.attentions, self.feeds, strict=True
        ):
            s = s + h[2] * a.to_out(part)
            out.append(s + h[5] * f(normed(s, h[3], h[4])))
        return tuple(out)


class FluxSingle(nn.Module):
    """Flux.1's block of one stream: attention beside a feed-forward, 4,608 tokens."""

    tokens = (4608, 0)

    def __init__(self, width: int = 3072, heads: int = 24) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.modulation = nn.Linear(width, 3 * width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(5 * width, width)

    def forward(self, x: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """The stream."""
        scale, shift, gate = self.modulation(functional.silu(condition))[:, None].chunk(3, -1)
        y = normed(x, scale, shift)
        q, k, v = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.to_q, self.to_k, self.to_v)
        )
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        del q, k, v
        inside = functional.gelu(self.up(y), approximate="tanh")
        return x + gate * self.down(torch.cat([seen, inside], -1))


class Wan14B(nn.Module):
    """Wan2.1-14B's block at 720p: 75,600 tokens that also look at 512 of text."""

    tokens = (75600, 512)

    def __init__(self, width: int = 5120, heads: int = 40, inside: int = 13824) -> None:
        super().__init__()
        self.width = width
        self.modulation = nn.Parameter(torch.zeros(1, 6, width))
        self.itself, self.across = Attention(width, heads), Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.feed = FeedForward(width, inside)

    def forward(self, x: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """The tokens."""
        held = (self.modulation + condition[:, None]).chunk(6, 1)
        y = normed(x, held[0], held[1])
        x = x + held[2] * self.itself(y, y)
        x = x + self.across(self.norm(x), text)
        return x + held[5] * self.feed(normed(x, held[3], held[4]))


BLOCKS: dict[str, Callable[..., Any]] = {
    "flux-double": FluxDouble, "flux-single": FluxSingle, "wan2.1-14b": Wan14B,
}  # fmt: skip


def block(name: str, scheme: Scheme | None, device: str = "meta", **sizes: int) -> nn.Module:
    """A block in bfloat16, all of its linear layers quantized by a scheme; without values."""
    with torch.device("meta"):
        made: nn.Module = BLOCKS[name](**sizes).bfloat16()
    if scheme is not None:
        linears = {n: m for n, m in made.named_modules() if type(m) is nn.Linear}
        for at, old in linears.items():
            parent, _, last = at.rpartition(".")
            new = QuantLinear(
                old.in_features, old.out_features, weight=scheme.weight, x=scheme.x, device="meta"
            )
            setattr(made.get_submodule(parent), last, new)
    return made if device == "meta" else made.to_empty(device=device)


def stored(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def computed() -> Iterator[dict[str, Any]]:
    """Lines of exact bytes, without a GPU."""
    for name in BLOCKS:
        plain = stored(block(name, None))
        for scheme, held in SCHEMES.items():
            size = stored(block(name, held))
            yield {
                "kind": "weights", "block": name, "weights": scheme, "bytes": size,
                "smaller_than_bf16": round(plain / size, 3),
            }  # fmt: skip


@torch.no_grad()
def measured() -> Iterator[dict[str, Any]]:
    """Lines of what the allocator saw: weights that lie there, and the peak of a call above what
    was there before the block, inputs included."""
    for name in BLOCKS:
        for scheme, held in SCHEMES.items():
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            module: Any = block(name, held, "cuda")
            fill(module)
            lying = torch.cuda.memory_allocated() - before
            given = inputs(module, module.tokens, "cuda")
            module(*given)  # configurations, counters and workspaces come with the first call
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            out = module(*given)
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
            outputs = out if isinstance(out, tuple) else (out,)
            whole = all(bool(t.isfinite().all()) for t in outputs)
            yield {
                "kind": "peak", "block": name, "weights": scheme, "bytes": lying,
                "peak_bytes": peak, "inputs": sum(t.numel() * t.element_size() for t in given),
                "finite": whole,
            }  # fmt: skip
            del module, given, out, outputs


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Numbers that a trained block might have: results stay finite."""
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        last = name.rpartition(".")[2]
        if t.dtype == torch.uint8 and "codes" in last and "fp8" in repr(_owner(module, name)):
            codes = torch.randn(t.shape, device=t.device).to(torch.float8_e4m3fn)
            t.copy_(codes.view(torch.uint8))
        elif not t.is_floating_point():
            low, high = (-127, 128) if t.dtype == torch.int8 else (0, 256)
            t.random_(low, high)
        elif "scales" in last:
            t.uniform_(0.5, 1.5).mul_(1e-2 if "fp8" in repr(_owner(module, name)) else 1e-4)
        else:
            t.normal_(std=0.02)


def _owner(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def inputs(module: Any, tokens: tuple[int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, those of the text, and a condition."""
    sizes = ((1, tokens[0]), (1, tokens[1]), (1,))
    made = [torch.randn(*s, module.width, device=device, dtype=torch.bfloat16) for s in sizes]
    return made[0], made[1], made[2]


def write(results: Path, commit: str) -> Path:
    """Print each line and write all: to ``memory.json``, of a GPU in its own folder."""
    gpu = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else ""
    found = []
    for line in (*computed(), *(measured() if gpu else ())):
        print(json.dumps(line), flush=True)
        found.append(line)
    path = results / gpu / "memory.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "commit": commit, "sources": rows.sources_hash(), "date": rows.today(), "gpu": gpu,
        "versions": rows.versions() if gpu else {"torch": torch.__version__}, "lines": found,
    }  # fmt: skip
    path.write_text(json.dumps(about, indent=1) + "\n")
    return path
