"""The GPU table, recognising devices, and the occupancy model against NVIDIA's header."""

from __future__ import annotations

import dataclasses
import pickle
import random
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdsl import targets
from kdsl.errors import ConfigError, UnsupportedError

NAMES = ["a100", "a100-40gb", "a10", "a30", "l4", "l40s", "rtx3090", "rtx4090", "rtx5090",
         "h100", "h100-pcie", "h200", "gh200", "b200"]  # fmt: skip
DTYPES = {"float32", "tf32", "float16", "bfloat16", "float8_e4m3", "int8", "int4"}


def test_every_promised_gpu_is_there() -> None:
    """The table holds exactly the promised names, each found under its name and its aliases."""
    assert sorted(t.name for t in targets.known()) == sorted(NAMES)
    for target in targets.known():
        for name in (target.name, target.name.upper(), *target.aliases):
            assert targets.get(name) is target
    assert targets.get("RTX_4090") is targets.get("rtx4090")


@pytest.mark.parametrize("target", targets.known(), ids=lambda t: t.name)
def test_figures_fit_together(target: targets.Target) -> None:
    """Units are not mixed up: clocks derived from the peaks are those of real chips."""
    assert set(dict(target.peaks)) <= DTYPES
    peak = dict(target.peaks)
    clock = peak["float32"] / target.sms / 2 / (64 if target.capability == (8, 0) else 128)
    assert 1.2e9 < clock < 2.7e9
    assert peak["bfloat16"] == peak["float16"]
    ratio = peak["int8"] / peak["float16"]
    assert ratio == pytest.approx(4 if target.name.startswith("rtx") else 2, rel=0.02)
    assert (target.peak("float8_e4m3") is None) == (target.capability < (8, 9))
    assert (target.peak("int4") is None) == (target.capability >= (9, 0))
    assert 2e11 < target.bandwidth < 1e13
    assert 20 << 30 < target.memory_bytes < 200 << 30
    assert target.smem_sm - target.smem_optin == 1024


def test_targets_are_values() -> None:
    """A target is frozen, hashable and survives a pickle, so it can cross process borders."""
    h100 = targets.get("h100")
    assert pickle.loads(pickle.dumps(h100)) == h100
    assert len({h100, targets.get("H100")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        h100.sms = 1  # type: ignore[misc]


def test_unknown_name_lists_known_and_nearest() -> None:
    """A typing error gets the nearest name, nonsense gets the list alone."""
    with pytest.raises(UnsupportedError, match=r"unknown GPU 'rtx409'") as caught:
        targets.get("rtx409")
    assert caught.value.hint.startswith("'rtx4090'; known: a100, a100-40gb, a10, ")
    with pytest.raises(UnsupportedError) as caught:
        targets.get("??")
    assert caught.value.hint.startswith("one of: a100, ")


@pytest.mark.parametrize(
    ("device", "sms", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 132, "h100"),
        ("NVIDIA H100 PCIe", 114, "h100-pcie"),
        ("NVIDIA H200", 132, "h200"),
        ("NVIDIA A100-SXM4-80GB", 108, "a100"),
        ("A100-SXM4-40GB", None, "a100-40gb"),
        ("NVIDIA GH200 480GB", None, "gh200"),
        ("NVIDIA GeForce RTX 4090", 128, "rtx4090"),
        ("Tesla L4", None, "l4"),
        ("NVIDIA H200 NVL", 132, None),
        ("NVIDIA H100 NVL", 132, None),
        ("NVIDIA GeForce RTX 4090 D", 114, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 42, None),
        ("NVIDIA A100-SXM4-80GB", 42, None),
        ("NVIDIA A10G", 80, None),
    ],
)
def test_recognises_devices(device: str, sms: int | None, name: str | None) -> None:
    """Drivers' names lead to the right row; brothers, laptops and slices to none."""
    found = targets.recognise(device, sms=sms)
    assert (found and found.name) == name


def _driver(**changes: object) -> SimpleNamespace:
    """What PyTorch 2.11 answered for an H100, with changes; None takes an attribute away."""
    answers: dict[str, object] = {
        "name": "NVIDIA H100 80GB HBM3",
        "major": 9,
        "minor": 0,
        "multi_processor_count": 132,
        "total_memory": 85_017_493_504,
        "L2_cache_size": 52_428_800,
        "max_threads_per_multi_processor": 2048,
        "memory_bus_width": 5120,
        "memory_clock_rate": 2_619_000,
        "regs_per_multiprocessor": 65_536,
        "shared_memory_per_block_optin": 232_448,
        "shared_memory_per_multiprocessor": 233_472,
        **changes,
    }
    return SimpleNamespace(**{k: v for k, v in answers.items() if v is not None})


def test_table_agrees_with_a_driver() -> None:
    """What a real H100 said, made a target as if unknown, equals the table's row where exact."""
    assert targets.from_device(_driver()) is targets.get("h100")
    made, row = targets.from_device(_driver(name="NVIDIA H1000")), targets.get("h100")
    assert made.live
    assert not row.live
    exact = ["capability", "sms", "smem_optin", "smem_sm", "registers_sm", "warps_sm", "blocks_sm",
             "l2_bytes"]  # fmt: skip
    assert {n: getattr(made, n) for n in exact} == {n: getattr(row, n) for n in exact}
    assert made.bandwidth == pytest.approx(row.bandwidth, rel=0.01)
    assert made.memory_bytes == pytest.approx(row.memory_bytes, rel=0.03)
    assert made.peaks == row.peaks


def test_unknown_live_device() -> None:
    """A slice of a card is its own target, with a share of its sibling's peaks."""
    made = targets.from_device(
        _driver(name="NVIDIA H100 80GB HBM3 MIG 3g.40gb", multi_processor_count=66)
    )
    assert (made.name, made.live, made.sms) == ("nvidia-h100-80gb-hbm3-mig-3g-40gb", True, 66)
    assert made.peak("float16") == pytest.approx(989.4e12 / 2)


def test_limits_fall_back_to_the_capability() -> None:
    """An older PyTorch that states little still gives limits, or an error that says which."""
    silent = {
        "shared_memory_per_block_optin": None,
        "shared_memory_per_multiprocessor": None,
        "memory_clock_rate": None,
        "L2_cache_size": None,
    }
    made = targets.from_device(_driver(name="NVIDIA H1000", **silent))
    assert (made.smem_optin, made.bandwidth, made.l2_bytes) == (232_448, 0.0, 0)
    with pytest.raises(UnsupportedError, match="does not state shared_memory_per_block_optin"):
        targets.from_device(_driver(name="NVIDIA X", major=13, **silent))


def test_occupancy_refuses_nonsense() -> None:
    """Negative sizes and no warps are errors, kernels that are too big fit zero times."""
    h100 = targets.get("h100")
    with pytest.raises(ConfigError, match="warps=0"):
        targets.occupancy(h100, 32, 0, 0)
    assert targets.occupancy(h100, 257, 0, 4) == 0
    assert targets.occupancy(h100, 32, h100.smem_optin + 1, 4) == 0
    assert targets.occupancy(h100, 32, h100.smem_optin, 4) == 1
    assert targets.occupancy(h100, 32, 0, 33) == 0


def test_occupancy_equals_nvidias_header(tmp_path: Path) -> None:
    """4,000 random launches and every edge: the model equals cuda_occupancy.h, built with g++."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        pytest.skip("triton, whose wheel carries cuda_occupancy.h, is not installed")
    include = Path(spec.origin).parent / "backends" / "nvidia" / "include"
    program = tmp_path / "oracle"
    source = Path(__file__).parent / "occupancy_oracle.cpp"
    subprocess.run(["g++", "-O1", f"-I{include}", str(source), "-o", str(program)], check=True)
    rng = random.Random(0)
    chips = {t.capability: t for t in targets.known()}
    points = []
    for target in chips.values():
        edges = [(r, s, w) for r in (0, 1, 255, 256, 257) for s in (0, target.smem_optin)
                 for w in (1, 3, 4, 16, 32)]  # fmt: skip
        edges += [(32, target.smem_sm // n - 1024 + d, 4) for n in range(1, 33) for d in (-1, 0, 1)]
        edges += [(rng.randint(1, 255), rng.randint(0, target.smem_optin + 512),
                   rng.randint(1, 32)) for _ in range(700)]  # fmt: skip
        points += [(target, r, max(s, 0), w) for r, s, w in edges]
    lines = [
        f"{t.capability[0]} {t.capability[1]} {t.smem_sm} {t.smem_optin} "
        f"{t.warps_sm * 32} {r} {s} {w * 32}"
        for t, r, s, w in points
    ]
    done = subprocess.run(
        [str(program)], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    expected = [int(line) for line in done.stdout.split()]
    assert [targets.occupancy(*point) for point in points] == expected
    assert len(expected) == len(points) > 4_000
    assert len(set(expected)) > 15


@pytest.mark.gpu
def test_the_gpu_at_hand() -> None:
    """The limits in the table are those that the driver of the card in this machine states."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    said = torch.cuda.get_device_properties(0)
    target = targets.from_device(said)
    assert target.capability == (said.major, said.minor)
    assert target.sms == said.multi_processor_count
    assert target.smem_optin == said.shared_memory_per_block_optin
    assert target.warps_sm == said.max_threads_per_multi_processor // 32
    assert target.l2_bytes == said.L2_cache_size
    assert target.memory_bytes == pytest.approx(said.total_memory, rel=0.04)
