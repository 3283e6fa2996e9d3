"""The example of a quantized model: it runs, its frames are apart, its patches are pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("av")
from examples.quantize_model.__main__ import main  # noqa: E402
from examples.quantize_model.train import Pictures, batches  # noqa: E402
from kdsl.plans import QuantizationPlan  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:no CUDA GPU here")


def test_it_runs(tmp_path: Path, capsys: Any) -> None:
    """Trained, quantized, saved, loaded, judged; what cannot be written is said."""
    given = ["--steps", "2", "--depth", "1", "--schemes", "W3A8 int8"]
    assert main([*given, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "blocks.0.up" in said
    assert "W3A8 int8" in said
    plan = QuantizationPlan.load(tmp_path / "w3a8-int8.safetensors", model="SmallDiT")
    assert {layer.weight.name for layer in plan.layers.values()} == {"slog3"}
    (tmp_path / "file").touch()
    assert main([*given, "--out", str(tmp_path / "file")]) == 2


def test_frames_are_apart() -> None:
    """No frame to judge on is one to learn from; batches are the same every time."""
    learned, other = (Pictures(judged=j).frames for j in (False, True))
    equal = (learned[:, None] == other[None]).flatten(2).all(-1)
    assert not equal.any()
    for one, two in zip(batches(2), batches(2), strict=True):
        assert all(map(torch.equal, one, two))
    assert not torch.equal(next(batches(1))[0], next(batches(1, judged=True))[0])


def test_patches_make_the_picture() -> None:
    """A batch's patches, put back, are crops of frames: neighbours are alike."""
    x = Pictures(judged=False).batch(4)
    assert tuple(x.shape) == (4, 64, 48)
    picture = x.view(4, 8, 8, 4, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(4, 32, 32, 3)
    along = (picture[:, :, 1:] - picture[:, :, :-1]).abs().mean()
    mixed = (picture - picture[:, torch.randperm(32)][:, :, torch.randperm(32)]).abs().mean()
    assert along < mixed / 2
