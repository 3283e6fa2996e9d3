"""Run quantized attention to measure it: seeded operands, calls, a check against plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.quantized import launch
from kdsl.kernels.attention.quantized.portable import layout_of
from kdsl.kernels.attention.runner import AttentionRunner, Sample
from kdsl.kernels.layouts import in_torch
from kdsl.kernels.rounding import UNIT
from kdsl.layouts.attention import WEIGHTS
from kdsl.work import Check

if TYPE_CHECKING:
    from torch import Tensor

    from kdsl.kernels.attention.quantized.tunable import QuantizedTunable


class QuantizedRunner(AttentionRunner):
    """Quantized attention of one spec and one set of table values on a device.

    Inputs are those of 16-bit attention, quantized by `prepare`.  The truth is attention on what
    the codes stand for, so that what is left are the weights' codes.
    """

    def __init__(self, tunable: QuantizedTunable, device: Any, load: Callable[[str], Any]) -> None:
        super().__init__(tunable, device, load)
        self.layout = layout_of(self.spec)
        self.operands: tuple[Tensor, ...] = ()

    def prepare(self, family: str, seed: int) -> None:
        """Fill the operands."""
        super().prepare(family, seed)
        self.operands = in_torch.operands(self.layout, self.q, self.k, self.v)

    def run(self, params: Mapping[str, Any]) -> None:
        """One call."""
        config = Config.from_json(dict(params))
        launch.launch(
            self.module_of(config.template),
            self.spec,
            config,
            self.lists,
            self.operands,
            self.tables_of(config.masks),
            self.out,
            self.lse,
        )

    def check(self) -> Check:
        """The sampled query that is farthest off of what it may be, by the norm of its difference
        over the norm of the truth."""
        outputs = {"output": self.out} | ({"log-sum-exp": self.lse} if self.spec.return_lse else {})
        for name, x in outputs.items():
            if bool(x.isnan().any()):
                return Check(math.inf, 0.0, f"the {name} holds NaN or was not written")
        worst = Check(0.0, 1.0)
        for s in self.samples:
            truth, lse, allowed = self._bounded(s)
            off = (self.out[s.batch, s.head, s.rows].double() - truth).norm(dim=-1)
            found = off / truth.norm(dim=-1).clamp_min(1e-6)
            pairs = [(found, allowed)]
            if self.spec.return_lse:
                weight = self.lse[s.batch, s.head, s.rows].double().nan_to_num() - lse.nan_to_num()
                pairs.append((weight.abs(), allowed.new_full(allowed.shape, self._exact)))
            for error, bound in pairs:
                at = int((error / bound).argmax())
                here = Check(float(error[at]), float(bound[at]))
                if here.error * worst.tolerance > worst.error * here.tolerance:
                    worst = here
        reason = "" if worst.right else "a sampled query is off"
        return Check(worst.error, worst.tolerance, reason)

    @property
    def _exact(self) -> float:
        """What float32 costs, relative: as for 16-bit attention, without its rounding."""
        roots = math.sqrt(self.spec.head_dim) + math.sqrt(self.spec.key_grid.tokens)
        return 16 * UNIT["float32"] * roots

    def _bounded(self, s: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """Output and log-sum-exp of a sample in float64, and how far a right output may be off.

        Weights ``w`` (the largest one 1) are rounded at random: integers by at most half a code
        each, which against the truth's norm is ``(n / 12) ** 0.5 / (levels |w|)`` for n keys, on
        average over channels; e4m3 and 16 bits by their relative unit.  Four times that: channels
        are few, and keys are not all alike.  The maximum that codes are relative to is at most the
        row's, which makes them finer.  E4m3 products keep 13 bits.
        """
        layout, kv = self.layout, s.head // self.spec.group
        named = dict(zip(layout.operands, self.operands, strict=True))
        q, k = (
            named[n][s.batch, h].double()
            * in_torch.spread(of, named[f"{n}_scale"][s.batch, h], named[n].shape[2]).double()
            for n, h, of in (("q", s.head, layout.q), ("k", kv, layout.k))
        )
        q, k = q[s.q_at], k[s.k_at]
        v = self.v[s.batch, kv].double()
        if layout.v is not None:
            codes, scale = in_torch.quantize(layout.v, self.v[s.batch, kv])
            v = codes.to(self.v.device).float().double() * scale.double()
        v = v[s.k_at]
        score = ((q @ k.T) * self.spec.softmax_scale).masked_fill_(~s.mask, -math.inf)
        weight = score.softmax(-1).nan_to_num()
        top = weight.amax(-1).clamp_min(1e-300)
        size = (weight / top[:, None]).norm(dim=-1).clamp_min(1.0)
        unit = 2 * UNIT[self.spec.dtype]
        if layout.weights is None:
            allowed = size.new_full(size.shape, unit)
        elif layout.weights == "e4m3":
            allowed = size.new_full(size.shape, 2.0**-4 / math.sqrt(3) + 2.0**-13)
        else:
            keys = s.mask.sum(-1).clamp_min(1).double()
            allowed = (keys / 12).sqrt() / (WEIGHTS[layout.weights] * size)
        return weight @ v, score.logsumexp(-1), 4 * allowed + unit + self._exact
