"""What operators say of tensors that are not what the spec says: word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kdsl import Attention, Permute, orders
from kdsl.errors import InputError
from kdsl.grid import Grid
from kdsl.runtime.checks import check_finite, check_permuted, check_tensors

SPEC = Attention(tokens=6, heads=4, kv_heads=2, head_dim=64, dtype="float16")
MOVE = Permute(tokens=6, heads=2, head_dim=8, dtype="bfloat16", order=orders.identity(Grid(6)))
Q, K = torch.zeros(1, 4, 6, 64).half(), torch.zeros(1, 2, 6, 64).half()
X = torch.zeros(1, 2, 6, 8).bfloat16()
AXES = "\n  in  [batch, heads, tokens, head_dim]"

ATTENTION: dict[str, tuple[tuple[Any, ...], str]] = {
    "number": ((Q, K), "attention takes q, k, v, got 2 tensors\n  try op(q, k, v)"),
    "list": ((Q, [1], K), "k is a list\n  try a torch tensor or a NumPy array"),
    "number of axes": (
        (Q[0], K, K),
        f"q has shape (4, 6, 64){AXES}\n  try (4, 4, 6, 64)",
    ),
    "scalar": ((torch.tensor(1.0), K, K), f"q has shape (){AXES}\n  try (0, 4, 6, 64)"),
    "kv heads": ((Q, Q, K), f"k has shape (1, 4, 6, 64){AXES}\n  try (1, 2, 6, 64)"),
    "batch": (
        (Q.repeat(2, 1, 1, 1), K, K),
        f"k has shape (1, 2, 6, 64){AXES}\n  try (2, 2, 6, 64)",
    ),
    "transposed": (
        (Q.transpose(1, 2), K, K),
        f"q has shape (1, 6, 4, 64){AXES}\n  try q.transpose(1, 2): (1, 4, 6, 64)",
    ),
    "transposed array": (
        (Q.transpose(1, 2).numpy(), K.numpy(), K.numpy()),
        f"q has shape (1, 6, 4, 64){AXES}\n  try q.swapaxes(1, 2): (1, 4, 6, 64)",
    ),
    "dtype": (
        (Q, K, K.bfloat16()),
        "v is bfloat16, the spec says float16\n"
        "  try v.to(torch.float16), or Attention(dtype='bfloat16')",
    ),
    "float64": (
        (Q.double(), K, K),
        "q is float64, the spec says float16\n  try q.to(torch.float16)",
    ),
    "array dtype": (
        (Q.numpy().astype(np.float32), K.numpy(), K.numpy()),
        "q is float32, the spec says float16\n  try q.astype('float16')",
    ),
    "mixed": (
        (Q.numpy(), K, K),
        "k is a torch tensor, q a NumPy array\n  try three torch tensors, or three NumPy arrays",
    ),
    "meta": (
        (Q, K.to("meta"), K),
        "k is on the meta device and has no values\n  try a tensor on a CPU or GPU",
    ),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_messages_of_attention(case: str) -> None:
    """The first tensor that does not fit is named with what would."""
    tensors, wanted = ATTENTION[case]
    with pytest.raises(InputError) as caught:
        check_tensors(SPEC, tensors)
    assert str(caught.value) == wanted


class Elsewhere:
    """A tensor on another device."""

    shape, dtype, device = K.shape, K.dtype, torch.device("cuda", 1)

    def detach(self) -> None:
        """Makes it look like torch's."""


def test_devices_must_agree() -> None:
    """A tensor on another device than q is named with both."""
    with pytest.raises(InputError) as caught:
        check_tensors(SPEC, (Q, K, Elsewhere()))
    assert str(caught.value) == "v is on cuda:1, q on cpu\n  try v.to(q.device)"


PERMUTE: dict[str, tuple[tuple[Any, ...], str]] = {
    "number": ((X, X), "permute takes x, got 2 tensors\n  try op(x)"),
    "none": ((), "permute takes x, got 0 tensors\n  try op(x)"),
    "no tensor": ((3,), "x is a int\n  try a torch tensor or a NumPy array"),
    "shape": ((X[:, :1],), f"x has shape (1, 1, 6, 8){AXES}\n  try (1, 2, 6, 8)"),
    "integers": (
        (X.int(),),
        "x is int32, the spec says bfloat16\n  try x.to(torch.bfloat16)",
    ),
    "float16": (
        (X.half(),),
        "x is float16, the spec says bfloat16\n"
        "  try x.to(torch.bfloat16), or Permute(dtype='float16')",
    ),
    "array": (
        (X.double().numpy(),),
        "x is float64, the spec says bfloat16\n  try x.astype('float32')",
    ),
}


@pytest.mark.parametrize("case", PERMUTE)
def test_messages_of_permute(case: str) -> None:
    """The same for the one tensor of a permute."""
    tensors, wanted = PERMUTE[case]
    with pytest.raises(InputError) as caught:
        check_permuted(MOVE, tensors)
    assert str(caught.value) == wanted


def test_what_fits_passes() -> None:
    """Any strides, any batch, arrays of the spec's dtype; float32 arrays where it is bfloat16."""
    wide = torch.zeros(3, 6, 4, 64).half().transpose(1, 2)
    tensors = (wide, K.expand(3, 2, 6, 64), torch.zeros(3, 2, 6, 64).half())
    assert check_tensors(SPEC, tensors) == tensors
    assert check_tensors(SPEC, (Q.double(), K, K), any_dtype=True)[0].dtype == torch.float64
    arrays = tuple(x.numpy() for x in (Q[:0], K[:0], K[:0]))
    assert check_tensors(SPEC, arrays)[0] is arrays[0]
    assert check_permuted(MOVE, (X,)) is X
    assert check_permuted(MOVE, (X.float().numpy(),)).dtype == np.float32


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_the_first_bad_number_is_named(make: Callable[..., Any]) -> None:
    """NaN and infinities of both signs, in arrays and tensors; finite ones pass."""
    values = [[0.0, 1.0], [2.0, 3.0]]
    check_finite({"x": make(values)})
    for bad in (float("nan"), float("inf"), -float("inf")):
        values[1] = [bad, bad]
        with pytest.raises(InputError, match=r"x holds NaN or infinity, first at \[1, 0\]"):
            check_finite({"y": make([1.0]), "x": make(values)})
