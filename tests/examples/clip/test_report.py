"""The page: complete, honest about what was not done, and made of nothing but itself."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from examples.clip import pictures, report
from examples.clip.axis_orders import ORDERS
from examples.clip.calibrate import Calibration, block_mass
from examples.clip.facts import Check, ClipFacts, Compiled, Cost, Leaf
from examples.clip.heads import Projected
from examples.clip.look import glance, mask_errors
from examples.clip.video import Clip
from kdsl.errors import InputError


@pytest.fixture(scope="module")
def facts(small_clip: Clip, small_made: Projected, small_found: Calibration) -> ClipFacts:
    """A run on the small grid; what kernels would say is made up here."""
    first = ("FHW",) * len(small_found.names)
    grid, block = small_found.grid, small_found.settings.block
    return ClipFacts(
        clip=small_clip,
        made=small_made,
        found=small_found,
        mass_before=block_mass(small_made.q, small_made.k, grid, first, block),
        errors=mask_errors(small_made, small_found),
        gpu="h100",
        command="python -m examples.clip --gpu h100",
        glances=(glance(small_made, small_found, 0, 100),),
        checks=(Check("attention, 210 tokens", "Triton interpreter", 1.5e-6, 1e-5),),
        leaves=(Leaf("index", "CUDA C", "int index(int i) { return i < 7 && i > 0; }"),),
        compiled=(Compiled("attention", "sm_90", "64 x 64, 4 warps", 168, 24, 98304),),
        costs=(Cost("block-sparse attention", "64 x 64", "predicted", 0.25, "cost model", 5e10),),
    )


class Page(HTMLParser):
    """Addresses, pictures and text of a page; raises on tags that do not close."""

    VOID = frozenset({"meta", "img", "link", "br", "hr", "input"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.pieces: list[str] = []
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and what it points to."""
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Every tag closes the one that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep what a person reads."""
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)

    @property
    def text(self) -> str:
        """The words of the page on one line."""
        return re.sub(r"\s+", " ", " ".join(self.pieces))


def test_the_page_loads_nothing(facts: ClipFacts) -> None:
    """It works from a disk without a network: every address is a picture inside the page."""
    source = report.render(facts)
    page = Page(source)
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import", source)


def test_every_picture_opens(facts: ClipFacts) -> None:
    """All pictures decode: the frames, two maps a head, two rows of what a token sees."""
    page = Page(report.render(facts))
    images = [_open(address) for address in page.addresses]
    frames, heads = len(facts.clip.frames), len(facts.found.names)
    assert sum(image.format == "PNG" for image in images) == 2 * heads
    assert sum(image.format == "JPEG" for image in images) == frames + 2 * min(frames, report.STRIP)


def test_the_table_of_six_orders_is_on_the_page(facts: ClipFacts) -> None:
    """Each head's row shows six densities, the chosen order's cell marked."""
    source = report.render(facts)
    rows = re.findall(r"<tr>\s*<td class=\"left\">(\w+)</td>(.*?)</tr>", source, re.S)
    shown = {name: re.findall(r"<td( class=\"won\")?><span>([\d.]+) %", row) for name, row in rows}
    for name, scores, order in zip(
        facts.found.names, facts.found.scores, facts.found.orders, strict=True
    ):
        assert [float(density) for _, density in shown[name]] == pytest.approx(
            [score.density * 100 for score in scores], abs=0.06
        )
        assert [bool(won) for won, _ in shown[name]] == [o == order for o in ORDERS]


def test_kernel_facts_are_on_the_page(facts: ClipFacts) -> None:
    """Leaves, compiler figures, checks and costs are shown as given, a prediction called one."""
    text = Page(report.render(facts)).text
    assert "int index(int i) { return i < 7 && i > 0; }" in text
    assert re.search(r"attention sm_90 64 x 64, 4 warps 168 24 B 96\.0 KiB", text)
    assert re.search(r"attention, 210 tokens Triton interpreter 1\.50e-06 1\.00e-05 within", text)
    assert re.search(r"block-sparse attention 64 x 64 predicted cost model 0\.25 200", text)
    assert " measured" not in text.split("Cost")[-1]


def test_errors_and_densities_are_on_the_page(facts: ClipFacts) -> None:
    """Each head's card carries its own error, retained mass and both densities."""
    source = report.render(facts)
    cards = re.findall(r"<section class=\"card\">(.*?)</section>", source, re.S)
    for card, name, error, kept in zip(
        cards, facts.found.names, facts.errors, facts.found.retained, strict=True
    ):
        assert f"<h3>{name}</h3>" in card
        assert f"<dd>{report.percent(error)}</dd>" in card
        assert f"<dd>{report.percent(kept)}</dd>" in card


def test_what_was_not_done_is_said(facts: ClipFacts) -> None:
    """A run without kernels claims nothing of them: no check, no compile, no cost."""
    bare = replace(facts, glances=(), checks=(), leaves=(), compiled=(), costs=())
    text = Page(report.render(bare)).text
    for sentence in ("No kernel was compared", "Nothing was generated", "Nothing was compiled"):
        assert sentence in text
    assert "No cost was predicted or measured" in text
    assert "passed" not in text


@pytest.mark.parametrize("error", [2e-5, math.nan, math.inf])
def test_a_failed_check_is_not_hidden(facts: ClipFacts, error: float) -> None:
    """An error above its bound, or none at all, counts as failed and is shown as such."""
    check = Check("attention", "Triton interpreter", error, 1e-5)
    assert not check.passed
    source = report.render(replace(facts, checks=(*facts.checks, check)))
    assert '<b class="fail">1 of 2</b>' in source
    assert source.count(">OUTSIDE<") == 1


def test_sources_cannot_break_the_page(facts: ClipFacts) -> None:
    """Generated code is text: a tag in it stays visible and is never a tag of the page."""
    leaf = Leaf("mask", "Triton", "x = '<script>alert(1)</script>' & y")
    page = Page(report.render(replace(facts, leaves=(leaf,))))
    assert "script" not in page.tags
    assert leaf.source in page.text


def test_the_film_is_credited(facts: ClipFacts) -> None:
    """Whoever passes the page on passes on title, author and licence of the frames."""
    text = Page(report.render(facts)).text
    for needed in ("Big Buck Bunny", "Blender Foundation", "CC BY 3.0"):
        assert needed in text


def test_another_clip_is_not_credited_to_the_film(facts: ClipFacts) -> None:
    """A user's own clip goes by its file name."""
    mine = replace(facts, clip=replace(facts.clip, path=Path("holiday.mp4")))
    text = Page(report.render(mine)).text
    assert "holiday.mp4" in text
    assert "Blender" not in text


def test_write_makes_the_folder(facts: ClipFacts, tmp_path: Path) -> None:
    """The page is written where asked, its folder made, and the path handed back."""
    path = report.write(tmp_path / "new" / "clip.html", facts)
    assert path == tmp_path / "new" / "clip.html"
    assert path.read_text(encoding="utf-8") == report.render(facts)


def test_a_page_that_cannot_be_written_is_an_error(facts: ClipFacts, tmp_path: Path) -> None:
    """A folder in the page's place is named in the error."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=r"cannot be written[\s\S]*taken"):
        report.write(tmp_path / "taken", facts)


def test_facts_that_do_not_fit_are_refused(facts: ClipFacts) -> None:
    """A missing error, a map of another size or a token off the grid fails before drawing."""
    with pytest.raises(InputError, match="one error for each of 8 heads"):
        replace(facts, errors=facts.errors[1:])
    with pytest.raises(InputError, match="masses"):
        replace(facts, mass_before=facts.mass_before[:, 1:])
    with pytest.raises(InputError, match="tokens below 210"):
        replace(facts, glances=(replace(facts.glances[0], token=210),))


def test_a_map_shows_exactly_the_kept_blocks(facts: ClipFacts) -> None:
    """One pixel a block, rows down and columns right; clear where dropped, inked where kept."""
    keep, mass = facts.found.blocks[3], facts.found.mass[3]
    alpha = np.asarray(_open(pictures.block_map(keep, mass)))[..., 3]
    np.testing.assert_array_equal(alpha > 0, keep)
    heavy, light = mass[keep].max(), mass[keep].min()
    assert alpha[mass == heavy].min() > alpha[(mass == light) & keep].max()


def test_heat_falls_where_attention_is() -> None:
    """The hottest patch is the one of most weight; a dropped one is darker than a faint one."""
    frame = np.full((32, 48, 3), 120, np.uint8)
    weights = np.full((2, 3), 1e-6, np.float32)
    weights[0, 2], weights[1, 0] = 1, 0
    shown = np.asarray(_open(pictures.overlay(frame, weights, 1.0))).astype(float).sum(-1)
    patches = shown.reshape(2, 16, 3, 16).mean((1, 3))
    assert patches.argmax() == 2
    assert patches.argmin() == 3


@pytest.mark.parametrize("query", [(0, 0), (1, 2), (1, 1)])
def test_the_outline_leaves_its_patch_alone(query: tuple[int, int]) -> None:
    """A query in a corner is outlined too, and its own heat stays readable."""
    frame = np.full((32, 48, 3), 120, np.uint8)
    weights = np.full((2, 3), 0.5, np.float32)
    plain, marked = (
        np.asarray(_open(pictures.overlay(frame, weights, 1.0, at))).astype(int)
        for at in (None, query)
    )
    changed = np.abs(plain - marked).max(-1) > 60  # JPEG blurs a little
    top, left = query[0] * 16, query[1] * 16
    assert not changed[top + 4 : top + 12, left + 4 : left + 12].any()
    assert changed.any()


@settings(deadline=None)
@given(count=st.integers(1, 40), data=st.data())
def test_the_frames_shown_include_the_asking_one(count: int, data: st.DataObject) -> None:
    """The strip holds the query's frame, is evenly spaced, in range, and as long as it can be."""
    frame = data.draw(st.integers(0, count - 1))
    picked = report.frames_around(frame, count)
    assert frame in picked
    assert picked[0] >= 0
    assert picked[-1] < count
    assert len(set(np.diff(picked))) <= 1
    assert min(count, report.STRIP) - 1 <= len(picked) <= report.STRIP


def _open(uri: str) -> Image.Image:
    kind, data = uri.removeprefix("data:image/").split(";base64,")
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert image.format == kind.upper()
    image.load()
    return image
