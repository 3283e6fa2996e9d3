"""Quantizing whole models: choice, report, refusals before anything is changed, plans."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdsl
from kdsl import layouts
from kdsl.errors import InputError, SpecError, StoreError
from kdsl.plans import Payload, Plan, QuantizationPlan, load

torch: Any = pytest.importorskip("torch")
from kdsl import nn  # noqa: E402
from kdsl.nn import calibration  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")
W4 = layouts.slog(4, None, 32)
SCHEME = nn.Scheme(weight=W4, x=layouts.activations(), block=32, samples=64, skip=("head",))


class Model(torch.nn.Module):  # type: ignore[misc]
    """Two blocks whose inputs stand out by their means, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict({"up": torch.nn.Linear(64, 96), "down": torch.nn.Linear(96, 64)})
            for _ in range(2)
        )
        self.head = torch.nn.Linear(64, 10)
        self.means = torch.nn.Buffer(torch.zeros(64).index_fill_(0, torch.tensor([3, 40]), 20.0))

    def forward(self, x: Any, scale: Any = 1.0) -> Any:
        """Of ``[..., 64]``."""
        for block in self.blocks:
            x = x + block["down"](torch.relu(block["up"](x * scale + self.means)))
        return self.head(x)


def batches(count: int = 3) -> list[Any]:
    """Inputs of calls."""
    return [
        torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(i)) for i in range(count)
    ]


def quantized(scheme: nn.Scheme = SCHEME, **options: Any) -> tuple[Any, QuantizationPlan]:
    """A model and its plan."""
    model = Model()
    return model, kdsl.quantize(model, scheme, batches(), progress=False, **options)


def test_layers_are_replaced_and_judged() -> None:
    """All but what is skipped; the mean that stands out is found; errors are those of the module on
    rows that chose nothing."""
    model, plan = quantized()
    assert list(plan.layers) == [f"blocks.{i}.{n}" for i in (0, 1) for n in ("up", "down")]
    assert type(model.head) is torch.nn.Linear
    plain = Model()
    sampled = calibration.observe(
        plain, {n: plain.get_submodule(n) for n in plan.layers}, batches(), 64, SCHEME.seed
    )
    for name, layer in plan.layers.items():
        said = layer.report
        rows = sampled[name].rows[1::2]
        with torch.no_grad():
            old = plain.get_submodule(name)
            exact = rows.double() @ old.weight.double().T
            found = model.get_submodule(name)(rows).double() - old.bias.double()
        error = float((found - exact).norm() / exact.norm())
        assert said["output_error"] == pytest.approx(error, rel=1e-4)
        assert said["output_db"] == pytest.approx(-20 * np.log10(error), abs=1e-3)
        assert said["bits"] == 4.5
        assert said["tried"][said["recipe"]] == min(said["tried"].values())
    for i in (0, 1):
        assert plan.layers[f"blocks.{i}.up"].report["recipe"].startswith("centred")
    x = batches()[0]
    with torch.no_grad():
        assert (model(x) - plain(x)).norm() < 0.2 * plain(x).norm()


def test_the_choice_gains() -> None:
    """Where means stand out, the chosen recipe's output error is below that of none."""
    _, plan = quantized(nn.Scheme(weight=layouts.w8(), x=layouts.activations("int4", 32), block=32,
                                  samples=64, skip=("head",)))  # fmt: skip
    for i in (0, 1):
        tried = plan.layers[f"blocks.{i}.up"].report["tried"]
        assert min(tried.values()) < 0.9 * tried["none"]


@pytest.mark.parametrize("kind", [tuple, dict, list])
def test_batches_are_what_the_model_takes(kind: Any) -> None:
    """Tensors, arguments in a row, arguments by name; a generator is read once."""
    made = ({"x": x, "scale": 0.5} if kind is dict else kind((x, 0.5)) for x in batches())
    model = Model()
    plan = kdsl.quantize(model, SCHEME, made, progress=False)
    assert len(plan.layers) == 4
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_named_layers_and_rotations() -> None:
    """`only` and `skip` are patterns, a rotation can be named, none can be wanted."""
    scheme = nn.Scheme(weight=W4, x=None, rotation="hadamard", block=32, only=("*.up",),
                       skip=("blocks.1.*",))  # fmt: skip
    model, plan = quantized(scheme)
    assert list(plan.layers) == ["blocks.0.up"]
    assert [k for k, _ in model.blocks[0]["up"].rotation.outline.steps] == ["signs", "hadamard"]
    assert plan.layers["blocks.0.up"].x is None


def test_blocks_of_a_rotation_divide() -> None:
    """The most columns that divide a width and have a constructed matrix."""
    scheme = nn.w4a8()
    found = {n: scheme.block_for(n) for n in (1152, 3420, 5120, 96, 20, 7)}
    assert found == {1152: 128, 3420: 76, 5120: 128, 96: 96, 20: 20, 7: 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.blocks[1]["down"].weight.data[3, 5].fill_(float("nan")),
         r"layer 'blocks.1.down' holds 1 values that are not finite[\s\S]*row 3, column 5"),
        (lambda m: m.blocks[1]["up"].weight.data[7].zero_(),
         r"layer 'blocks.1.up' has 1 rows of zeros[\s\S]*row 7[\s\S]*skip="),
        (lambda m: m.add_module("unused", torch.nn.Linear(64, 64)), "'unused' saw 0 rows"),
        (lambda m: m.means.data[0].fill_(float("inf")), "input of layer 'blocks.0.up' holds NaN"),
    ],
)  # fmt: skip
def test_a_model_that_is_refused_is_as_it_was(change: Any, said: str) -> None:
    """The first layer at fault is named, with the way out, before anything is replaced."""
    model = Model()
    change(model)
    before = {n: (type(m), m) for n, m in model.named_modules()}
    with pytest.raises(InputError, match=said):
        kdsl.quantize(model, SCHEME, batches(), progress=False)
    assert {n: (type(m), m) for n, m in model.named_modules()} == before
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_other_refusals() -> None:
    """Groups that do not divide, no layers, no batches, batches and schemes that are none."""
    for error, said, scheme, given in (
        (SpecError, r"'head', 10 x 64: groups of 96", nn.Scheme(weight=layouts.slog(4, None, 96),
         x=None, only=("head",)), batches()),
        (InputError, "takes none of the model's 5", nn.w4a8(only=("x",)), batches()),
        (InputError, "no calibration batches", SCHEME, []),
        (InputError, "batch is a str", SCHEME, ["x"]),
        (SpecError, "scheme=4", 4, batches()),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            kdsl.quantize(Model(), scheme, given, progress=False)
    for fields in ({"rotation": "spin"}, {"weight": 4}, {"clips": (2.0,)}, {"samples": 1},
                   {"skip": "head"}, {"x": "int8"}):  # fmt: skip
        with pytest.raises(SpecError, match=next(iter(fields))):
            nn.Scheme(**{"weight": W4, "x": None, **fields})


def test_a_plan_comes_back(tmp_path: Path) -> None:
    """Through a file into a fresh model, which computes the same bits; and out of the model."""
    model, plan = quantized(name="small")
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    read = QuantizationPlan.load(path, model="small")
    again = nn.apply(read, Model())
    assert torch.equal(again(batches()[0]), model(batches()[0]))
    for name, layer in plan.layers.items():
        assert read.layers[name].report == layer.report
        assert read.layers[name].weight == layer.weight
    assert read.provenance == plan.provenance
    assert read.nbytes == plan.nbytes == sum(4.5 * 64 * 96 / 8 for _ in range(4))
    out = nn.plan_of(again, "small")
    assert out.to_plan()["l0.weight.codes"].tobytes() == plan.to_plan()["l0.weight.codes"].tobytes()
    assert torch.equal(nn.apply(out, again)(batches()[0]), model(batches()[0]))
    with pytest.raises(InputError, match="no quantized layers"):
        nn.plan_of(Model())


def test_files_that_are_none(tmp_path: Path) -> None:
    """Truncated, foreign, of another kind, for another model, with values that are none."""
    _, plan = quantized(name="small")
    path, other = tmp_path / "plan.safetensors", tmp_path / "other.safetensors"
    plan.save(path)
    with pytest.raises(StoreError, match="for model 'small', not for 'large'"):
        QuantizationPlan.load(path, model="large")
    other.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match="cannot be read"):
        QuantizationPlan.load(other)
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, other)
    with pytest.raises(StoreError, match="no kdsl header"):
        QuantizationPlan.load(other)
    Plan(kind="partition", model="small", payload={}).save(other)
    with pytest.raises(StoreError, match="not for 'quantization'"):
        QuantizationPlan.load(other)
    whole = load(path)
    for name, change, said in (
        ("l0.weight.scales", lambda a: a * np.float16("nan"), "not finite"),
        ("l0.weight.scales", lambda a: a[:, :1], "'scales' is float16 of shape"),
        ("l1.weight.codes", lambda a: a.view(np.int8), "'codes' is int8"),
        ("l0.recipe.0.values", lambda a: a[None], "'blocks.0.up'"),
        ("l3.bias", lambda a: a[1:], "a bias of shape"),
    ):
        held = dict(whole.payload)
        values = change(held[name].values)
        axes = tuple(f"{name}.{i}" for i in range(values.ndim))
        held[name] = Payload(axes, values)
        Plan(kind="quantization", model="small", payload=held, layers=whole.layers).save(other)
        with pytest.raises(StoreError, match=said):
            QuantizationPlan.load(other)
    for layers, said in (
        ([{**whole.layers[0], "more": 1}], "unknown field 'more'"),
        ([{**whole.layers[0], "weight": {}}], "layer 'blocks.0.up'|malformed"),
    ):
        Plan(kind="quantization", model="small", payload=whole.payload, layers=layers).save(other)
        with pytest.raises(StoreError, match=said):
            QuantizationPlan.load(other)


def test_a_plan_for_another_model() -> None:
    """Layers that are not there, or of another shape or kind; nothing is replaced."""
    _, plan = quantized()
    for change, said in (
        (lambda m: m.blocks.pop(1), "no layer 'blocks.1.up'"),
        (lambda m: m.blocks[1].update({"up": torch.nn.Linear(64, 32)}), "'blocks.1.up' is 32 x 64"),
        (lambda m: m.blocks[1].update({"up": torch.nn.ReLU()}), "is a ReLU"),
    ):
        model = Model()
        change(model)
        with pytest.raises(InputError, match=said):
            nn.apply(plan, model)
        assert type(model.blocks[0]["up"]) is torch.nn.Linear


def test_the_sample_is_uniform_and_bounded() -> None:
    """Each row of a stream is as likely to stay, however it comes in batches; no more are held."""
    kept = calibration.Reservoir(2, 500, seed=0)
    at = 0
    for size in (3, 700, 40, 257, 1000, 2000):
        rows = torch.arange(at, at + size, dtype=torch.float32)[:, None].expand(-1, 2)
        kept.add(rows)
        at += size
        assert len(kept.rows) == min(at, 500)
    places = kept.rows[:, 0].sort().values
    assert len(places.unique()) == 500
    # The mean of 500 of 4000 places: off by one standard deviation is 4000 / sqrt(12 * 500).
    assert abs(float(places.mean()) - at / 2) < 5 * at / (12 * 500) ** 0.5
    halves = torch.histc(places, bins=4, min=0, max=at)
    assert halves.min() > 125 - 5 * 94**0.5
    assert kept.seen == at


def test_a_report_is_printed(capsys: Any) -> None:
    """A line a layer with its error, and the size of all; progress is drawn when asked for."""
    model = Model()
    plan = kdsl.quantize(model, SCHEME, batches())
    nn.show(plan)
    said = capsys.readouterr().out
    assert "layers" in said
    assert "4 quantized layers" in said
    assert "4.50 bits a weight" in said


def test_copies_share_nothing() -> None:
    """A deep copy of a quantized model can be changed without the other, and both without the
    plan."""
    model, plan = quantized()
    other = copy.deepcopy(model)
    x = batches()[0]
    wanted = model(x)
    other.blocks[0]["up"].weight_scales.zero_()
    assert torch.equal(model(x), wanted)
    assert not torch.equal(other(x), wanted)
    before = plan.layers["blocks.0.up"].buffers["scales"].copy()
    model.blocks[0]["up"].weight_scales.zero_()
    np.testing.assert_array_equal(plan.layers["blocks.0.up"].buffers["scales"], before)
