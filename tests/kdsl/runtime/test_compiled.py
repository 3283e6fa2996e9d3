"""Compiling for absent GPUs and reading resources out of the binaries."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kdsl import targets
from kdsl.errors import CompileError, StoreError
from kdsl.runtime import compiled
from kdsl.runtime.compiled import Compiled, compile_cuda, compile_triton

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
gluon = pytest.importorskip("triton.experimental.gluon")
gl = pytest.importorskip("triton.experimental.gluon.language")

needs_nvrtc = pytest.mark.skipif(find_spec("cupy") is None, reason="NVRTC is reached through CuPy")

CHIPS = list({t.capability: t for t in targets.known()}.values())
every_chip = pytest.mark.parametrize("target", CHIPS, ids=lambda t: f"sm_{t.cc}")


@triton.jit
def product(a, b, c, length, step_a, step_b, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """One tile of a matrix product."""
    rows, columns, inner = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    sums = tl.zeros((M, N), tl.float32)
    for k in range(0, length, K):
        x = tl.load(a + rows * step_a + (k + inner)[None, :])
        y = tl.load(b + (k + inner)[:, None] * step_b + columns)
        sums += tl.dot(x, y)
    tl.store(c + rows * N + columns, sums)


@triton.jit
def product_again(
    a, b, c, length, step_a, step_b, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    """The same under another name and on other lines."""
    rows, columns, inner = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    sums = tl.zeros((M, N), tl.float32)

    for k in range(0, length, K):
        x = tl.load(a + rows * step_a + (k + inner)[None, :])
        y = tl.load(b + (k + inner)[:, None] * step_b + columns)
        sums += tl.dot(x, y)
    tl.store(c + rows * N + columns, sums)


@triton.jit
def add_all(out, tables, N: tl.constexpr):
    """Sums the arrays of a tuple argument."""
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(tables[0] + i) + tl.load(tables[1] + i))


@gluon.jit
def copy_gluon(source, target, N: gl.constexpr):
    """Copies N numbers."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    i = gl.arange(0, N, layout=layout)
    gl.store(target + i, gl.load(source + i))


TYPES = {
    "a": "*fp16",
    "b": "*fp16",
    "c": "*fp32",
    "length": "i32",
    "step_a": "i32",
    "step_b": "i32",
}


def _product(target: targets.Target, fn: Any = product, **changes: Any) -> Compiled:
    sizes = {"M": 64, "N": 128, "K": 64, **changes.pop("sizes", {})}
    options = {"num_warps": 4, "num_stages": 3, **changes.pop("options", {})}
    return compile_triton(
        fn, target, TYPES, sizes, options=options, divisible=changes.pop("divisible", list(TYPES))
    )


@every_chip
def test_triton_compiles_for_absent_gpus(target: targets.Target) -> None:
    """Each compute capability of the table gets a binary with believable resources."""
    made = _product(target)
    assert made.target == target.name
    assert made.entry == "product"
    assert f".target sm_{target.cc}" in made.ptx
    assert 32 <= made.registers <= 255
    assert 64 * 64 * 2 + 64 * 128 * 2 <= made.shared_bytes <= target.smem_optin
    assert made.warps == 4
    assert (made.stack_bytes == 0) <= (made.spill_bytes == 0)
    assert targets.occupancy(target, made.registers, made.shared_bytes, made.warps) >= 1
    assert pickle.loads(pickle.dumps(made)) == made


def test_alignment_makes_the_program() -> None:
    """Without the stated multiples of 16 Triton pipelines nothing: another program comes out."""
    a100 = targets.get("a100")
    aligned, plain = _product(a100), _product(a100, divisible=())
    assert "cp.async" in aligned.ptx
    assert "cp.async" not in plain.ptx
    assert plain.shared_bytes < aligned.shared_bytes


def test_hash_follows_the_code_alone() -> None:
    """Name and lines leave the hash alone; a size and the architecture change it."""
    a100 = targets.get("a100")
    first = _product(a100)
    again = _product(a100, product_again)
    assert first.cubin != again.cubin
    assert first.binary_hash == again.binary_hash
    others = {
        first.binary_hash,
        _product(a100, sizes={"N": 64}).binary_hash,
        _product(a100, options={"num_warps": 8}).binary_hash,
        _product(targets.get("rtx3090")).binary_hash,
    }
    assert len(others) == 4


def test_tuple_arguments() -> None:
    """Entries of a tuple argument take types and alignment of their own."""
    made = compile_triton(
        add_all,
        targets.get("a100"),
        {"out": "*fp32", "tables": ("*fp32", "*fp32")},
        {"N": 1024},
        divisible=["out", ("tables", 0), ("tables", 1)],
    )
    assert "LDG.E.128" in compiled.sass(made.cubin)


def test_gluon_compiles() -> None:
    """A Gluon kernel goes the same way."""
    made = compile_triton(
        copy_gluon, targets.get("h100"), {"source": "*fp32", "target": "*fp32"}, {"N": 1024}
    )
    assert made.entry == "copy_gluon"
    assert made.registers > 0


def test_triton_errors_carry_the_message() -> None:
    """What Triton says, and what was asked of it, are in the error."""
    h100 = targets.get("h100")
    with pytest.raises(CompileError, match="range must be a power of 2") as caught:
        _product(h100, sizes={"M": 60})
    assert "'M': 60" in caught.value.where
    with pytest.raises(CompileError, match="num_warps must be a power of 2"):
        _product(h100, options={"num_warps": 3})
    with pytest.raises(CompileError, match="product has no argument 'q'"):
        _product(h100, divisible=["q"])
    with pytest.raises(CompileError, match="no Triton kernel"):
        compile_triton(len, h100, {}, {})


def test_a_machine_without_room_is_no_compile_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the compiler cannot write, the kernel is not at fault: the error names the folder.

    So it is for a full disk that only a tool's log speaks of, and where memory ends.
    """
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(blocked))
    h100 = targets.get("h100")
    options = {"num_warps": 8}  # not compiled elsewhere in this process
    with pytest.raises(StoreError, match="no room to work") as caught:
        _product(h100, options=options)
    assert str(blocked) in caught.value.where
    assert "TRITON_CACHE_DIR" in caught.value.hint
    for error in (MemoryError("4 GiB"), RuntimeError("ptxas: No space left on device")):

        def fails(*given: Any, error: Exception = error, **options: Any) -> Any:
            raise error

        monkeypatch.setattr("triton.compile", fails)
        with pytest.raises(StoreError, match=str(error)):
            _product(h100)
    monkeypatch.setattr("triton.compile", lambda *given, **options: 1 / 0)
    with pytest.raises(CompileError, match="ZeroDivisionError"):
        _product(h100)


SPILLING = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void busy(const float* x, __half* y, __nv_bfloat16* z, int n) {
    __shared__ float tile[96];
    float v[64];
    #pragma unroll
    for (int i = 0; i < 64; ++i) v[i] = x[i * n + threadIdx.x];
    tile[threadIdx.x % 96] = v[0];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 64; ++i)
        #pragma unroll
        for (int j = 0; j < 64; j += 7) v[i] = v[i] * v[j] + tile[j];
    #pragma unroll
    for (int i = 0; i < 64; ++i) y[i * n + threadIdx.x] = __float2half(v[i]);
    z[threadIdx.x] = __float2bfloat16(v[5]);
}
"""


@every_chip
def test_binary_says_what_ptxas_said(target: targets.Target, tmp_path: Path) -> None:
    """Spills, stack and registers read out of a binary equal the log of the ptxas that made it."""
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    (tmp_path / "kernel.ptx").write_text(_product(target, sizes={"M": 256}).ptx)
    arch = f"--gpu-name=sm_{target.cc}{'a' * (target.cc >= 90)}"
    for assembler in ("ptxas-blackwell", "ptxas"):
        done = subprocess.run(
            [str(bundled / assembler), "-v", arch, "kernel.ptx", "-o", "kernel.cubin"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            break
    cubin = (tmp_path / "kernel.cubin").read_bytes()
    said = compiled.read_log(done.stderr, "product")
    assert said.spill_bytes > 0
    assert compiled.read_binary(cubin, "product", target) == said


@needs_nvrtc
@every_chip
def test_cuda_compiles_for_absent_gpus(target: targets.Target) -> None:
    """CUDA C with half headers gets a binary; limiting its registers makes it spill."""
    roomy = compile_cuda(SPILLING, target, "busy")
    tight = compile_cuda(SPILLING, target, "busy", options=("--maxrregcount=40",))
    assert roomy.cubin[:4] == b"\x7fELF"
    assert f".target sm_{target.cc}" in roomy.ptx
    assert (roomy.spill_bytes, roomy.stack_bytes, roomy.shared_bytes) == (0, 0, 96 * 4)
    assert tight.registers <= 40 < roomy.registers
    assert tight.spill_bytes > 0
    assert tight.stack_bytes > 0
    assert tight.binary_hash != roomy.binary_hash
    assert pickle.loads(pickle.dumps(tight)) == tight


@needs_nvrtc
def test_dynamic_shared_memory_is_added() -> None:
    """Shared memory that the launch adds counts, too."""
    made = compile_cuda(SPILLING, targets.get("l4"), "busy", dynamic_shared=1000)
    assert made.shared_bytes == 96 * 4 + 1000


@needs_nvrtc
def test_nvrtc_errors_carry_the_log() -> None:
    """A typing error is reported with NVRTC's line, a missing kernel with those that are there."""
    l4 = targets.get("l4")
    with pytest.raises(CompileError, match=r'busy\.cu\(\d+\): error: identifier "tiles"'):
        compile_cuda(SPILLING.replace("tile[threadIdx", "tiles[threadIdx"), l4, "busy")
    with pytest.raises(CompileError, match="no kernel 'lazy'") as caught:
        compile_cuda(SPILLING, l4, "lazy")
    assert caught.value.where == "kernels found: busy"


def test_nothing_heavy_is_imported() -> None:
    """The module itself imports neither torch, triton nor cupy."""
    code = (
        "import sys, kdsl.runtime.compiled; "
        "sys.exit(bool({'torch', 'triton', 'cupy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
