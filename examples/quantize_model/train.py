"""Pictures of a clip as patches, and a few minutes of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from examples.clip.video import CLIP, decode
from examples.quantize_model.model import DEPTH, PATCH, SIDE, SmallDiT

FRAMES, HEIGHT, WIDTH = 64, 90, 160
SEED = 0


class Pictures:
    """Random crops of frames as patches ``[batch, 64, 48]``: of even frames to learn from, of odd
    ones to judge on; no frame is in both."""

    def __init__(self, judged: bool, seed: int = SEED) -> None:
        frames, _ = decode(CLIP, FRAMES, HEIGHT, WIDTH)
        self.frames = torch.from_numpy(frames[int(judged) :: 2].copy())
        self.rng = np.random.default_rng((seed, judged))

    def batch(self, size: int = 16) -> Tensor:
        """Patches, numbers about -2 to 2."""
        side = SIDE * PATCH
        crops = []
        for _ in range(size):
            f = self.rng.integers(len(self.frames))
            y, x = (int(self.rng.integers(n - side)) for n in (HEIGHT, WIDTH))
            crop = self.frames[f, y : y + side, x : x + side].float() / 64 - 2
            crops.append(crop.flip(1) if self.rng.random() < 0.5 else crop)
        held = torch.stack(crops).unflatten(1, (SIDE, PATCH)).unflatten(3, (SIDE, PATCH))
        return held.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)

    def noisy(self, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
        """Patches on their way to noise, their times, and the velocity to learn."""
        x = self.batch(size)
        t = torch.from_numpy(self.rng.random(size, dtype=np.float32))
        noise = torch.from_numpy(self.rng.standard_normal(x.shape, dtype=np.float32))
        way = t[:, None, None]
        return (1 - way) * x + way * noise, t, noise - x


def train(
    steps: int, said: Callable[[int, float], None] | None = None, depth: int = DEPTH
) -> SmallDiT:
    """A model after so many steps of AdamW; ``said`` hears each step's loss."""
    torch.manual_seed(SEED)
    model, data = SmallDiT(depth=depth), Pictures(judged=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.01)
    warm = max(steps // 10, 1)
    for step in range(steps):
        rate = min((step + 1) / warm, 1.0) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * rate
        x, t, velocity = data.noisy()
        loss = (model(x, t) - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if said is not None:
            said(step, float(loss.detach()))
    return model.eval()


def batches(count: int, judged: bool = False, size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    """Arguments of so many calls of the model."""
    data = Pictures(judged, seed=SEED + 1)
    for _ in range(count):
        x, t, _ = data.noisy(size)
        yield x, t


@torch.no_grad()
def judged(model: torch.nn.Module, count: int = 8, device: str = "cpu") -> float:
    """Mean squared error of the velocity on frames that nothing was trained or calibrated on."""
    data = Pictures(judged=True, seed=SEED + 2)
    dtype = next(p.dtype for p in model.parameters())
    errors = []
    for _ in range(count):
        x, t, velocity = data.noisy()
        found = model(x.to(device, dtype), t.to(device)).float().cpu()
        errors.append(float((found - velocity).square().mean()))
    return float(np.mean(errors))
