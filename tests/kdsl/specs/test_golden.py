"""The canonical form of specs does not change by accident: row ids and caches hang on it.

After a change that is meant, write the file anew: ``python -m tests.kdsl.specs.test_golden``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdsl import masks, orders, specs
from kdsl.expr import table
from kdsl.grid import Grid
from kdsl.layouts import Outline, activations, int4_qk, int8, int8_qk, int8_qk_fp8_pv, w8
from kdsl.specs import Attention, Matmul, Permute, Prepass, Quantize, Spec

GOLDEN = Path(__file__).with_name("golden.json")
VIDEO = Grid(frames=21, height=30, width=52)
MIXED = Grid(frames=13, height=30, width=45, text=226, text_at="end")


def cubes_of_mixed() -> orders.Order:
    """An order of a grid with text."""
    return orders.cubes(MIXED, (4, 5, 5))


def some_specs() -> dict[str, Spec]:
    """Specs that between them use every part of the canonical form."""
    cubes = orders.cubes(VIDEO, (3, 5, 4))
    return {
        "dense": Attention(tokens=4096, heads=8, head_dim=128),
        "video": Attention(
            tokens=VIDEO,
            heads=12,
            head_dim=128,
            mask=masks.window(VIDEO, (5, 9, 9)) | masks.frame_band(VIDEO, 1),
            order=cubes,
        ),
        "text": Attention(
            tokens=MIXED,
            heads=4,
            kv_heads=2,
            head_dim=64,
            dtype="float16",
            mask=masks.radial(MIXED, 90) | masks.text(MIXED),
            order=orders.axes(MIXED, "HWF"),
            scale=0.125,
            return_lse=True,
            block=(64, 64),
        ),
        "by head": Attention(
            tokens=VIDEO,
            heads=2,
            head_dim=80,
            mask=masks.per_head([masks.causal(), masks.window(4096) & ~masks.sink(4)]),
            order=orders.per_head([orders.axes(VIDEO, "WHF"), ~cubes @ orders.axes(VIDEO, "FWH")]),
        ),
        "tables": Attention(
            queries=512,
            keys=1024,
            heads=2,
            head_dim=96,
            dtype="float32",
            mask=masks.predicate(
                lambda q, k, batch: (
                    table("doc", (4, 512), "int16")[batch, q]
                    == table("key_doc", (4, 1024), low=0)[batch, k]
                )
            ),
            key_order=orders.table(table("late", 1024)),
        ),
        "plan": Attention(
            tokens=VIDEO,
            heads=12,
            head_dim=128,
            mask=masks.blocks("plan", cubes) & masks.causal(),
            order=cubes,
        ),
        "int8 fp8": Attention(
            tokens=VIDEO,
            heads=12,
            head_dim=128,
            order=cubes,
            stored=True,
            layout=int8_qk_fp8_pv(),
        ),
        "int4 by thread": Attention(
            tokens=MIXED, heads=2, head_dim=64, layout=int4_qk("int8", "thread")
        ),
        "int8 16-bit": Attention(tokens=512, heads=2, head_dim=64, layout=int8_qk()),
        "permute": Permute(tokens=MIXED, heads=24, head_dim=64, order=orders.axes(MIXED, "HFW")),
        "quantize": Permute(
            tokens=VIDEO, heads=12, head_dim=128, order=cubes, layout=int8("block", 64)
        ),
        "rotate and quantize": Quantize(
            rows=4608,
            columns=3072,
            format=activations("int4", 128, asymmetric=True),
            recipe=Outline((("mean", 0), ("channels", 0), ("signs", 0), ("hadamard", 128))),
            norm="layer",
            modulate=True,
        ),
        "pre-pass": Prepass(
            tokens=MIXED,
            heads=4,
            kv_heads=2,
            head_dim=64,
            dtype="float16",
            layout=int4_qk("int8", "thread"),
            order=orders.per_head([cubes_of_mixed(), cubes_of_mixed()] * 2),
            norm="rms_token",
            eps=1e-5,
            rope="half",
            smooth=True,
            pool=(64, 128),
        ),
        "matmul": Matmul(
            rows=4608,
            inner=3072,
            columns=12288,
            x=activations("int8", asymmetric=True),
            weight=w8(),
            bias=True,
            activation="gelu_tanh",
            residual=True,
        ),
    }


def told(spec: Spec) -> dict[str, Any]:
    """What must stay the same."""
    return {
        "json": spec.to_json(),
        "fingerprint": spec.fingerprint,
        "program": spec.program,
    }


@pytest.mark.parametrize("name", some_specs())
def test_canonical_form_is_frozen(name: str) -> None:
    """JSON, fingerprint and program of each spec are those on file; the file reads back equal."""
    spec, held = some_specs()[name], json.loads(GOLDEN.read_text())[name]
    assert told(spec) == held
    assert specs.from_json(held["json"]) == spec
    assert specs.canonical(specs.from_json(held["json"]).to_json()) == specs.canonical(held["json"])


def test_the_file_holds_these_specs_and_no_others() -> None:
    """No entry of the file is left behind unchecked."""
    assert set(json.loads(GOLDEN.read_text())) == set(some_specs())


if __name__ == "__main__":
    written = {name: told(spec) for name, spec in some_specs().items()}
    GOLDEN.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
