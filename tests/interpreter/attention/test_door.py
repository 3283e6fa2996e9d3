"""The front door with a kernel behind it: arrays of either kind, and the doctor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kdsl
from kdsl import Attention, masks, targets
from kdsl.errors import InputError
from kdsl.runtime import doctor
from tests.devices import DEVICE, GPU
from tests.tolerance import expected

SPEC = Attention(
    tokens=50, heads=2, head_dim=64, dtype="float16", mask=masks.causal(), block=(32, 32),
    return_lse=True,
)  # fmt: skip
CONFIG = {"block_m": 32, "block_n": 32, "num_warps": 4, "num_stages": 1, "loads": "pointer"}


def arrays(seed: int = 0) -> list[np.ndarray]:
    """Gaussian q, k, v."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, 2, 50, 64)).astype(np.float16) for _ in range(3)]


def test_numpy_arrays_go_in_and_come_out() -> None:
    """The kernel's results, as arrays; strides of any kind and read-only memory are no matter."""
    op = kdsl.build(SPEC, gpu=GPU, backend="triton", config=CONFIG)
    q, k, v = arrays()
    before = q.copy()
    out, lse = op(q, k, v)
    assert (type(out), out.dtype, lse.dtype) == (np.ndarray, np.float16, np.float32)
    same = op(*(torch.from_numpy(x).to(DEVICE) for x in (q, k, v)))
    np.testing.assert_array_equal(out, same[0].cpu().numpy())
    np.testing.assert_array_equal(lse, same[1].cpu().numpy())
    expected(SPEC, *(torch.from_numpy(x) for x in (q, k, v)), block_n=32).check(out, lse)
    backwards = q[:, :, ::-1].copy()[:, :, ::-1]
    backwards.setflags(write=False)
    np.testing.assert_array_equal(op(backwards, k, v)[0], out)
    np.testing.assert_array_equal(q, before)


def test_arrays_and_tensors_do_not_mix() -> None:
    """q as an array and k as a tensor is an error that says so, not one of devices."""
    op = kdsl.build(SPEC, gpu=GPU, backend="triton", config=CONFIG)
    q, k, v = arrays()
    with pytest.raises(InputError, match="k is a torch tensor, q a NumPy array"):
        op(q, torch.from_numpy(k), torch.from_numpy(v))


def test_the_doctor_measures_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that `build` makes is within its bound; one that ignores its mask is not."""
    target = targets.get(GPU) if GPU else doctor.device_target()
    assert target is not None
    status, note = doctor.run(SPEC, target)
    assert status == "measured"
    assert "allowed" in note
    wrong = Attention(tokens=50, heads=2, head_dim=64, dtype="float16", block=(32, 32))
    source = doctor.tunable_for(wrong).source  # type: ignore[attr-defined]
    load = doctor.codecache.load
    monkeypatch.setattr(doctor.codecache, "load", lambda text: load(source))
    status, note = doctor.run(SPEC, target)
    assert status == "fails"
    assert "pointed inputs" in note
