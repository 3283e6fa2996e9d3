"""Repeated launches of the matmul templates, on a made-up driver: what would it read?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from benchmarks import made_up
from kdsl.kernels.launching import direct
from kdsl.kernels.matmul import arguments, launch
from kdsl.kernels.matmul.config import Config
from kdsl.kernels.matmul.tunable import MatmulTunable
from kdsl.runtime import codecache
from kdsl.specs import Matmul
from kdsl.targets import get
from tests.matrices import operands, packed, spec_of
from tests.recording import Driver, addresses

PLAIN: dict[str, Any] = {"inner": 256, "bias": True, "residual": True}


@pytest.mark.parametrize("template", ["hopper", "portable"])
@pytest.mark.parametrize(
    "spec",
    [
        spec_of("int8", True, **PLAIN),
        spec_of("fp8", **PLAIN),
        spec_of("int8", **PLAIN, weight=packed(4)),
        spec_of("fp8", **PLAIN, weight=packed(3, "fp8")),
    ],
    ids=["int8", "fp8", "4 bits", "3 bits"],
)
def test_later_launches_read_their_own_tensors(
    spec: Matmul, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of a known kind hands the driver its own operands and output; another stride or
    alignment is another kind, and what TMA cannot fetch is copied to where it can."""
    if template == "hopper" and spec.weight.name == "slog3":
        template = "portable"
    config = Config.from_json(MatmulTunable(spec, (template,)).default(get("h100")))
    driver = Driver()
    monkeypatch.setattr(direct, "driver", lambda: driver)
    source = codecache.load(arguments.source(spec, config))
    kernel = made_up.Kernel(source.matmul_tiles.arg_names, driver)
    made = launch.Launcher(SimpleNamespace(matmul_tiles=kernel), spec, config)

    def drawn(seed: int) -> dict[str, Any]:
        given = {n: torch.from_numpy(v) for n, v in operands(spec, seed).items()}
        sums = made.view.zeros
        return {**given, **({"weight_sums": launch.sums_of(given["weight_codes"])} if sums else {})}

    def called(given: dict[str, Any], moved: str = "") -> int:
        before = len(driver.read)
        out = made.output(given["x_codes"])
        made(given, out)
        if len(driver.read) > before:
            wanted = addresses(*(t for n, t in given.items() if n != moved), out)
            assert wanted <= driver.read[-1][1]
        return len(driver.read) - before

    assert [called(drawn(seed)) for seed in range(3)] == [0, 1, 1]
    given = drawn(3)
    wide = torch.zeros((37, 272), dtype=torch.int8 if made.view.integer else torch.uint8)
    wide[:, :256] = given["x_codes"].view(wide.dtype)
    assert called({**given, "x_codes": wide[:, :256]}) == 0
    assert called({**given, "x_codes": wide[:, :256]}) == 1
    room = torch.zeros(37 * 72 + 1, dtype=torch.float16)
    odd = room[1:].view(37, 72)
    odd.copy_(given["residual"])
    found = called({**given, "residual": odd}, "residual")
    # A copy of it is as any other to TMA; the portable template reads it where it is.
    assert found == (1 if template == "hopper" else 0)
    assert called(given) == 1
    assert not kernel.launches
