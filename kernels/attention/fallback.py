"""Another configuration for tensors that no descriptor describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdsl.errors import InputError
from kdsl.kernels.attention.config import Config
from kdsl.kernels.attention.hopper import launch as hopper
from kdsl.targets import Target, from_device

if TYPE_CHECKING:
    from torch import Tensor

Legal = Callable[[Mapping[str, Any], Target], "str | None"]
"""`Tunable.legal` of the portable template."""


def fitting(config: Config, tensors: tuple[Tensor, ...], legal: Legal) -> Config:
    """The configuration, with pointer loads where descriptors cannot describe these tensors.

    A descriptor wants a contiguous last axis, and addresses and strides in units of 16 bytes.
    Pointer loads of the same tiles may need more shared memory than there is: then stages, and at
    last rows, become fewer.  InputError where nothing smaller fits the GPU either.
    """
    if config.loads == "pointer" or hopper.describable_tensors(tensors):
        return config
    device = tensors[0].device
    if device.type != "cuda":  # the interpreter, which has no limits
        return next(_smaller(config))
    import torch

    return chosen(config, legal, from_device(torch.cuda.get_device_properties(device)))


def chosen(config: Config, legal: Legal, target: Target) -> Config:
    """The first configuration with pointer loads that a GPU can run."""
    for other in _smaller(config):
        if legal(other.to_json(), target) is None:
            return other
    raise InputError(
        f"{target.name} cannot run these tiles on tensors of such strides",
        where=repr(config),
        hint="contiguous tensors: x.contiguous()",
    )


def _smaller(config: Config) -> Iterator[Config]:
    """Configurations with pointer loads, those closest to the given one first."""
    if config.template == "portable":
        first = replace(config, loads="pointer")
    else:
        first = Config(min(config.block_m, 64), min(config.block_n, 64), 4, 2)
    rows = first.block_m
    while rows >= 16:
        for stages in range(first.num_stages, 0, -1):
            yield replace(first, block_m=rows, num_stages=stages)
        rows //= 2
