"""The kernels compile for every architecture they are written for, without spills, anywhere."""

from __future__ import annotations

import struct

import pytest

from kdsl import layouts, orders, targets
from kdsl.errors import CompileError
from kdsl.grid import Grid
from kdsl.kernels.permute import generate, nvrtc
from kdsl.kernels.permute.config import Config, Sizes, candidates, default
from kdsl.layouts import Layout
from kdsl.runtime.compiled import Compiled, compile_cuda
from kdsl.specs import DTYPES, Permute
from kdsl.targets import Target

pytest.importorskip("cupy")

CHIPS = [targets.get(name) for name in ("a100", "l4", "h100", "b200", "rtx5090")]
LAYOUTS = {
    "none": None,
    "token": layouts.int8("token"),
    "block": layouts.int8("block", 64),
    "channel": layouts.int8("channel"),
    "tensor": layouts.int8("tensor"),
}
GRID = Grid(frames=21, height=30, width=52, text=226)


def spec_of(layout: Layout | None, dtype: str = "bfloat16", head_dim: int = 128) -> Permute:
    order = orders.per_head([orders.cubes(GRID, (4, 7, 5)), orders.axes(GRID, "HWF")])
    return Permute(tokens=GRID, heads=2, head_dim=head_dim, order=order, dtype=dtype, layout=layout)


def check(spec: Permute, config: Config, target: Target) -> Compiled:
    """Compile; no spills, no stack, registers that fit, shared memory as announced."""
    made = compile_cuda(
        generate.source(spec, config), target, generate.entry(spec), options=nvrtc.OPTIONS
    )
    sizes = Sizes(spec, config)
    assert made.spill_bytes == 0
    assert made.stack_bytes == 0
    assert made.registers * sizes.threads <= 65536
    assert made.shared_bytes == sizes.shared_bytes
    assert ".ftz" not in made.ptx, "subnormal numbers must stay"
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")
def test_every_kernel_compiles_everywhere(target: Target, layout: str, dtype: str) -> None:
    """Every layout and dtype for sm_80, 89, 90, 100 and 120: no spills, no flushed subnormals."""
    spec = spec_of(LAYOUTS[layout], dtype)
    check(spec, default(spec), target)


@pytest.mark.parametrize("head_dim", [33, 64, 80, 96, 256, 1024])
def test_other_head_dimensions_compile(head_dim: int) -> None:
    """Narrow loads and long rows do not spill either."""
    for layout in ("none", "token", "channel"):
        spec = spec_of(LAYOUTS[layout], head_dim=head_dim)
        check(spec, default(spec), targets.get("h100"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [80, 128])
def test_the_whole_space_compiles(layout: str, head_dim: int) -> None:
    """Every legal configuration (the lag is no part of the program)."""
    spec = spec_of(LAYOUTS[layout], head_dim=head_dim)
    for config in candidates(spec):
        if config.lag == 1:
            check(spec, config, targets.get("h100"))


def test_loads_are_as_wide_as_announced() -> None:
    """Loads of 16 bytes appear as such in the program, and nothing is loaded in between."""
    spec = spec_of(None)
    config = default(spec)
    ptx = check(spec, config, targets.get("h100")).ptx
    wide = ptx.count("ld.global.cs.v4")
    assert wide == config.rows * Sizes(spec, config).chunks
    assert ptx.index("st.global") > ptx.rindex("ld.global.cs.v4")


@pytest.mark.parametrize("method", ["PERMUTE", "EACH_ROW", "BLOCKS", "GROUPS"])
def test_the_template_compiles_as_it_stands(method: str) -> None:
    """With its stand-in, the original order, the file is a program of its own."""
    text = generate.TEMPLATE.read_text()
    for name in generate.INCLUDED:
        text = text.replace(f'#include "{name}"', (generate.FOLDER / name).read_text())
    entry = generate.ENTRIES[method]
    made = compile_cuda(
        text, targets.get("a100"), entry, options=(*nvrtc.OPTIONS, f"-DMETHOD={method}")
    )
    assert made.spill_bytes == 0


def test_binaries_are_whole() -> None:
    """What is loaded on a GPU is a complete ELF file: its program headers lie inside it."""
    spec = spec_of(None)
    source = generate.source(spec, default(spec))
    binary = nvrtc.cubin(source, generate.entry(spec), (9, 0))
    offset, size, count = (
        *struct.unpack_from("<Q", binary, 32),
        *struct.unpack_from("<HH", binary, 54),
    )
    assert binary[:4] == b"\x7fELF"
    assert offset + size * count <= len(binary)


def test_the_compilers_words_reach_the_user() -> None:
    """A source that does not compile raises CompileError with NVRTC's log."""
    with pytest.raises(CompileError, match='identifier "nothing" is undefined'):
        nvrtc.cubin('extern "C" __global__ void k() { nothing(); }', "k", (8, 0))
