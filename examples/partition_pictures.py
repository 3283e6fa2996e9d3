"""Draw two timelines of one attention on eight simulated GPUs: plain USP, and the plan chosen.

``python -m examples.partition_pictures`` writes docs/partition-plain.svg and docs/partition.svg.
"""

from __future__ import annotations

from pathlib import Path

from kdsl import targets
from kdsl.parallel import families, gantt
from kdsl.parallel.chooser import choose
from kdsl.parallel.cost import Costs, simulate
from kdsl.parallel.drift import Drift
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.topology import presets
from kdsl.parallel.work import Shape
from kdsl.specs import Attention

DOCS = Path(__file__).resolve().parent.parent / "docs"


def pictures() -> dict[str, str]:
    """SVG by file name: 24 heads of uneven density, 32,768 tokens."""
    spec = Attention(tokens=32768, heads=24, head_dim=128)
    costs = Costs.of(spec, targets.get("h100"), presets(8)["nvlink"])
    work = next(Drift(Shape.of(spec), 1, density=0.2, spread=0.9).works())
    plain = simulate(families.plain(work, Mesh(4, 2)), work, costs)
    chosen = choose(work, costs)
    ours = simulate(chosen.plan, work, costs, chunks=chosen.chunks)
    return {
        "partition-plain.svg": gantt.svg(plain, "Simulated: plain Ulysses 4 x ring 2"),
        "partition.svg": gantt.svg(ours, f"Simulated: {chosen.name}, {chosen.chunks} chunks"),
    }


def main() -> None:
    """Write the pictures."""
    for name, drawn in pictures().items():
        (DOCS / name).write_text(drawn)
        print(DOCS / name)


if __name__ == "__main__":
    main()
