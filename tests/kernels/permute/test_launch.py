"""The launcher without a GPU: its checks, and whole calls whose kernels are emulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdsl import layouts, orders
from kdsl.errors import InputError, UnsupportedError
from kdsl.expr.tables import Table
from kdsl.grid import Grid
from kdsl.kernels.permute import launch
from kdsl.kernels.permute.arrays import Arrays, arrays_of
from kdsl.kernels.permute.config import Sizes, default
from kdsl.kernels.permute.launch import Launch, Runner, result_shapes
from kdsl.reference.permute import permute
from kdsl.specs import Permute

Array = npt.NDArray[Any]
GRID = Grid(height=9, width=11)


class _HostArrays(Arrays):
    """NumPy arrays that pass for arrays on GPU 0."""

    device = 0
    in_capture = False

    def owns(self, x: Any) -> bool:
        return isinstance(x, np.ndarray)

    def dtype(self, x: Any) -> str:
        return str(x.dtype)

    def address(self, x: Any) -> int:
        return int(x.ctypes.data)

    def item(self, x: Any) -> int:
        return int(x.itemsize)

    def strides(self, x: Any) -> tuple[int, ...]:
        return tuple(x.strides)

    def contiguous(self, x: Any) -> bool:
        return bool(x.flags.c_contiguous)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        held = np.full(size + 16, 0xFF, np.uint8)
        start = -held.ctypes.data % 16
        return held[start : start + size].view(dtype).reshape(shape)

    def zeros(self, words: int) -> Any:
        self.scratch = np.zeros(words, np.uint32)
        return self.scratch

    def upload(self, values: Any, dtype: str) -> Any:
        self.uploads = getattr(self, "uploads", 0) + 1
        return np.ascontiguousarray(values, dtype)

    def capturing(self) -> bool:
        return self.in_capture

    @contextmanager
    def stream(self) -> Iterator[None]:
        yield


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, emulator: Any) -> _HostArrays:
    """Arrays of the CPU, and kernels that the emulator runs."""
    arrays = _HostArrays()

    def kernel(self: Runner, sizes: Sizes, found: Arrays) -> Callable[..., None]:
        found.refuse_capture("the kernel is not compiled yet")

        def run(grid: tuple[int], block: tuple[int], arguments: tuple[int, ...]) -> None:
            plan = Launch(grid[0], block[0], arguments)
            inputs = [x for x in (arrays.x, getattr(arrays, "scratch", None)) if x is not None]
            emulator.launch(self.spec, sizes.config, plan, inputs, seed=1)

        return run

    def face(x: Any) -> _HostArrays:
        arrays.x = x
        return arrays

    monkeypatch.setattr(Runner, "_kernel", kernel)
    monkeypatch.setattr(launch, "arrays_of", face)
    return arrays


def spec_of(per: str | None = None, order: Any = None, head_dim: int = 32) -> Permute:
    return Permute(
        tokens=GRID,
        heads=2,
        head_dim=head_dim,
        order=orders.cubes(GRID, (4, 3)) if order is None else order,
        dtype="float16",
        layout=per and layouts.int8(per, 32),
    )


def aligned(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    x = _HostArrays().empty(shape, "float16")
    x[...] = rng.standard_normal(shape)
    return x


@pytest.mark.parametrize("per", [None, "token", "block", "channel", "tensor"])
def test_calls_end_to_end(host: _HostArrays, per: str | None) -> None:
    """Checks, results, scratch, arguments and alignment together give the reference's results."""
    spec = spec_of(per)
    runner = Runner(spec, default(spec))
    rng = np.random.default_rng(0)
    x = aligned(rng, (3, 2, GRID.tokens, 32))
    off = rng.standard_normal((3, 2, GRID.tokens, 33)).astype(np.float16)[..., 1:]
    for each in (x, x[:1], off, np.broadcast_to(x[:1], x.shape)):
        found, want = runner(each), permute(spec, each)
        for a, b in zip(*((found, want) if per else ((found,), (want,))), strict=True):
            np.testing.assert_array_equal(a, b)


def test_results_can_be_given(host: _HostArrays) -> None:
    """``out`` is written to and returned; one that does not fit is refused with what would."""
    spec = spec_of("token")
    runner = Runner(spec, default(spec))
    x = aligned(np.random.default_rng(1), (1, 2, GRID.tokens, 32))
    outs = tuple(host.empty(shape, dtype) for shape, dtype in result_shapes(spec, 1))
    found = runner(x, out=outs)
    assert found[0] is outs[0]
    assert found[1] is outs[1]
    np.testing.assert_array_equal(outs[0], permute(spec, x)[0])
    with pytest.raises(InputError, match="contiguous float32 of shape"):
        runner(x, out=(outs[0], outs[1][:, :, :50]))
    with pytest.raises(InputError, match="contiguous int8 of shape"):
        runner(x, out=(outs[0].astype(np.uint8), outs[1]))


def test_tables_of_a_call(host: _HostArrays) -> None:
    """Lists known now are uploaded once; open ones come with the call, from either side."""
    rng = np.random.default_rng(2)
    x = aligned(rng, (1, 2, GRID.tokens, 32))
    fixed = spec_of(order=orders.table(rng.permutation(GRID.tokens), GRID))
    runner = Runner(fixed, default(fixed))
    for _ in range(3):
        np.testing.assert_array_equal(runner(x), permute(fixed, x))
    assert host.uploads == 1
    named = spec_of(order=orders.table(Table("plan", GRID.tokens), GRID))
    runner = Runner(named, default(named))
    tables = {"plan": rng.permutation(GRID.tokens)}
    np.testing.assert_array_equal(runner(x, tables), permute(named, x, tables))
    with pytest.raises(InputError, match="'plan' has no values"):
        runner(x)
    with pytest.raises(InputError, match="'plan' has shape"):
        runner(x, {"plan": np.arange(5)})


def test_empty_inputs(host: _HostArrays) -> None:
    """No batch items or no tokens: results of the right shape, and nothing is launched."""
    for per in (None, "token", "block", "channel", "tensor"):
        spec = spec_of(per)
        found = Runner(spec, default(spec))(np.empty((0, 2, GRID.tokens, 32), np.float16))
        want = permute(spec, np.empty((0, 2, GRID.tokens, 32), np.float16))
        assert shapes(found) == shapes(want)
        layout = per and layouts.int8(per, 32)
        none = Permute(
            tokens=0, heads=2, head_dim=32, order=orders.identity(Grid(0)), dtype="float16",
            layout=layout,
        )  # fmt: skip
        x = np.empty((1, 2, 0, 32), np.float16)
        assert shapes(Runner(none, default(none))(x)) == shapes(permute(none, x))


def shapes(results: Any) -> list[tuple[int, ...]]:
    return [r.shape for r in (results if isinstance(results, tuple) else (results,))]


def test_inputs_that_do_not_fit(host: _HostArrays) -> None:
    """Shape, dtype and a strided last axis are refused, and the error says what would work."""
    spec = spec_of()
    runner = Runner(spec, default(spec))
    x = aligned(np.random.default_rng(3), (1, 2, GRID.tokens, 32))
    with pytest.raises(InputError, match=r"\[batch, 2, 99, 32\]"):
        runner(x[:, :1])
    with pytest.raises(InputError, match="x is float32, the spec says float16"):
        runner(x.astype(np.float32))
    with pytest.raises(InputError, match=r"x\.contiguous"):
        runner(np.repeat(x, 2, axis=-1)[..., ::2])


def test_captures_need_a_compiled_kernel(host: _HostArrays) -> None:
    """During a capture nothing is compiled or uploaded: the error says to call once before."""
    spec = spec_of()
    x = aligned(np.random.default_rng(4), (1, 2, GRID.tokens, 32))
    host.in_capture = True
    with pytest.raises(UnsupportedError, match=r"prepare\(x\), before the capture"):
        Runner(spec, default(spec))(x)


def test_only_arrays_on_a_gpu_are_taken() -> None:
    """NumPy arrays and CPU tensors are refused by name, with the way out."""
    with pytest.raises(InputError, match=r"numpy\.ndarray"):
        arrays_of(np.zeros(3))
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"x is on cpu(.|\n)*x\.cuda\(\)"):
        arrays_of(torch.zeros(3))


def test_too_many_thread_blocks_are_refused() -> None:
    """A grid beyond CUDA's limit is an error, not a wrapped number."""
    spec = Permute(tokens=1, heads=2, head_dim=128, order=orders.identity(Grid(1)))
    with pytest.raises(UnsupportedError, match="2147483648 thread blocks"):
        launch.plan(Sizes(spec, default(spec)), 0, (0, 0, 0), 2**30, [0])
