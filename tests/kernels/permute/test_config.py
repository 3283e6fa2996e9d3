"""Configurations: legality, defaults, derived sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import layouts, orders, targets
from kdsl.errors import ConfigError, InputError, UnsupportedError
from kdsl.grid import Grid
from kdsl.kernels.permute.config import (
    HELD_REGISTERS,
    SPACE,
    Config,
    Sizes,
    candidates,
    default,
    fitting,
    method,
    problem,
)
from kdsl.kernels.permute.launch import make_runner, plan, result_shapes, scratch_words
from kdsl.kernels.permute.tunable import PermuteTunable, stays_cached, traffic
from kdsl.layouts import Layout
from kdsl.specs import DTYPES, Permute

LAYOUTS = {
    "none": None,
    "token": layouts.int8("token"),
    "token, 32 channels": Layout("int8", (1, 32)),
    "block": layouts.int8("block", 64),
    "blocks of 128": layouts.int8("block", 128),
    "channel": layouts.int8("channel"),
    "tensor": layouts.int8("tensor"),
    "blocks of 7 x 8": Layout("int8", (7, 8)),
}
H100 = targets.get("h100")


def spec_of(
    layout: str = "none", dtype: str = "bfloat16", head_dim: int = 128, n: int = 1000
) -> Permute:
    return Permute(
        tokens=n,
        heads=3,
        head_dim=head_dim,
        order=orders.identity(Grid(n)),
        dtype=dtype,
        layout=LAYOUTS[layout],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_defaults_are_legal(layout: str, dtype: str) -> None:
    """For every layout and dtype and many head dimensions, at every width of loads that fits."""
    for head_dim in (32, 40, 64, 72, 80, 96, 128, 160, 256, 512):
        if LAYOUTS[layout] and head_dim % (LAYOUTS[layout].group[1] or 1):
            continue
        spec = spec_of(layout, dtype, head_dim)
        for vector in (16, 8, 4):
            if head_dim * (4 if dtype == "float32" else 2) % vector == 0:
                config = default(spec, vector)
                assert problem(spec, config) == ""
                assert config.vector == vector


def test_methods_by_layout() -> None:
    """Layouts that a row or a thread block can hold are read once, others twice."""
    found = {name: method(spec_of(name)) for name in LAYOUTS}
    assert found == {
        "none": "PERMUTE",
        "token": "EACH_ROW",
        "token, 32 channels": "EACH_ROW",
        "block": "BLOCKS",
        "blocks of 128": "BLOCKS",
        "channel": "GROUPS",
        "tensor": "GROUPS",
        "blocks of 7 x 8": "GROUPS",
    }
    huge = Permute(
        tokens=9000,
        heads=1,
        head_dim=256,
        order=orders.identity(Grid(9000)),
        layout=layouts.int8("block", 4096),
    )
    assert method(huge) == "GROUPS"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_candidate_keeps_the_promises_of_the_template(layout: str) -> None:
    """A lane per row to look up, bounded registers, groups inside a block: for all legal ones."""
    spec = spec_of(layout)
    found = candidates(spec)
    assert default(spec) in found
    for config in found:
        sizes = Sizes(spec, config)
        assert sizes.warp_rows <= 32
        assert sizes.held <= HELD_REGISTERS
        assert sizes.chunks * config.lanes >= sizes.vectors
        assert sizes.threads <= 1024
        if sizes.method == "BLOCKS":
            assert sizes.tile >= sizes.group[0]


@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SPACE.items()}),
    st.sampled_from(sorted(LAYOUTS)),
)
def test_the_tunable_agrees_with_the_list_of_candidates(
    params: dict[str, int], layout: str
) -> None:
    """A choice is legal exactly if it is listed, and illegal ones come with a reason."""
    tunable = PermuteTunable(spec_of(layout))
    reason = tunable.legal(params, H100)
    assert (reason is None) == (Config(**params) in candidates(tunable.spec))
    assert reason is None or reason.strip()


def test_json_and_back() -> None:
    """Configurations survive JSON; unknown settings and values are named."""
    config = Config(4, 8, 16, 8, 2)
    assert Config.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="'stages'"):
        Config.from_json({"stages": 3})
    with pytest.raises(ConfigError, match="rows=3"):
        Config.from_json({"rows": 3})


def test_narrow_inputs_get_narrow_loads() -> None:
    """Alignment decides the width of loads; without any the error says what to do."""
    spec = spec_of("token")
    wide = default(spec)
    assert fitting(spec, wide, 16) == wide
    assert fitting(spec, wide, 8).vector == 8
    assert fitting(spec, wide, 2).vector == 2
    with pytest.raises(InputError, match=r"x\.contiguous"):
        fitting(spec, wide, 1)


def test_rows_beyond_registers_are_refused() -> None:
    """A head dimension that no thread can hold is no kernel's; the error gives the limit."""
    assert default(spec_of(head_dim=4096)).vector == 16
    with pytest.raises(UnsupportedError, match="head_dim 4104"):
        default(spec_of(head_dim=4104))


def test_runners_refuse_illegal_configurations() -> None:
    """An illegal choice, or a GPU that is too old, is an error before any compiler starts."""
    with pytest.raises(ConfigError, match="32 lanes share a row of 16 vectors"):
        make_runner(spec_of(), Config(lanes=32))
    old = targets.get("a100").__class__(**{**vars(targets.get("a100")), "capability": (7, 5)})
    with pytest.raises(ConfigError, match=r"below compute capability 8\.0"):
        make_runner(spec_of(), Config(), old)


def test_bytes_of_a_call() -> None:
    """Input and result once each, scales included, and the second reading apart."""
    n = 2 * 3 * 1000 * 128
    assert traffic(spec_of(), 2).total == 2 * n + 2 * n
    assert traffic(spec_of("token"), 2).total == 2 * n + n + 4 * 2 * 3 * 1000
    channel = traffic(spec_of("channel"), 2)
    assert (channel.read, channel.reread) == (2 * n, 2 * n)
    assert channel.written == n + 4 * 2 * 3 * 128


def test_second_readings_count_where_they_leave_the_cache() -> None:
    """A head that fits the L2 cache is read once from memory, a larger one twice."""
    for n, cached in ((10_000, True), (1_000_000, False)):
        tunable = PermuteTunable(spec_of("channel", n=n))
        params = {**tunable.default(H100), "lag": 1}
        assert stays_cached(tunable.spec, Config(**params), H100) is cached
        once = traffic(tunable.spec).read + traffic(tunable.spec).written
        again = traffic(tunable.spec).reread
        work = tunable.work(params, H100)
        assert work.bytes == pytest.approx(once + (0 if cached else again), rel=0.01)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_launches_cover_every_token(layout: str) -> None:
    """Enough thread blocks for all rows of all heads, whatever the length."""
    for n in (1, 63, 64, 65, 1000):
        spec = spec_of(layout, n=n)
        sizes = Sizes(spec, default(spec))
        outs = [0] * len(result_shapes(spec, 2))
        launch = plan(sizes, 0, (0, 0, 0), 2, outs)
        rows = launch.blocks * sizes.tile
        assert rows >= 2 * 3 * n * (2 if sizes.method == "GROUPS" else 1)
        assert (scratch_words(sizes, 2) > 0) == (sizes.method == "GROUPS")
