"""An exchange that gradients go back through: what was received goes to who sent it.

The exchange is linear, so its gradient is the exchange the other way.  A line that several ranks
were sent has the sum of what they return; the gather of lines before it adds that up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kdsl.parallel.channel import Channel
    from kdsl.parallel.execute import Sending


class AllToAll(torch.autograd.Function):
    """One all-to-all-v of lines, and of their gradients back."""

    @staticmethod
    def forward(
        ctx: Any, sent: torch.Tensor, sending: Sending, channel: Channel, state: Any
    ) -> Any:
        """What arrives for ``sent``, sender by sender."""
        ctx.held = sending, channel, state
        received = sent.new_empty((sending.arriving, *sent.shape[1:]))
        channel.all_to_all(received, sent, sending.recv_splits, sending.send_splits, state)
        return received

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """What the receivers say of ``sent``."""
        sending, channel, state = ctx.held
        grad = grads[0].contiguous()
        back = grad.new_empty((sum(sending.send_splits), *grad.shape[1:]))
        channel.all_to_all(back, grad, sending.send_splits, sending.recv_splits, state)
        return back, None, None, None


def wanted(*tensors: Any) -> bool:
    """Whether any gradient is asked for."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def exchanged(
    sending: Sending, lines: Sequence[Any], channel: Channel, state: Any, anchor: Any
) -> Any:
    """`Sending.exchanged`, differentiable.

    The way back is collective: a rank whose lines depend on nothing takes part in it too, through
    no lines of ``anchor``, which does.
    """
    none = anchor[:0] if anchor.dim() == lines[0].dim() else anchor[:0, ..., 0]
    whole = torch.cat([*lines, none.to(lines[0].dtype)])
    sent = sending.send.of(whole).contiguous()
    received = AllToAll.apply(sent, sending, channel, state)  # type: ignore[no-untyped-call]
    return torch.cat([received, sending.kept.of(whole)])
