"""What ``import kdsl`` costs, what it loads, and what the rooms load."""

from __future__ import annotations

import ast
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kdsl

HEAVY = ("torch", "triton", "cupy", "optuna", "rich", "av", "matplotlib", "scipy")
UPPER = {"autotune", "calibrate", "integrations", "kernels", "nn", "parallel", "reference"}
UPPER |= {"runtime", "tuning_db"}

CLOCK = "import time; t = time.process_time(); import kdsl; print(time.process_time() - t)"
LOADED = "import json, sys; print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"


def modules(root: Path, *rooms: str) -> list[str]:
    """Names of the modules in rooms of the package, by their place below ``kdsl/``."""
    files = [f for room in rooms for f in (root / "kdsl" / room).rglob("*.py")]
    names = [".".join(f.relative_to(root).with_suffix("").parts) for f in files]
    return sorted(name.removesuffix(".__init__") for name in names)


def language(root: Path) -> list[Path]:
    """Files of the language: everything in ``kdsl/`` that is no room of its own."""
    places = [p for p in (root / "kdsl").iterdir() if p.name not in UPPER]
    files = [f for p in places for f in ([p] if p.is_file() else p.rglob("*")) if f.suffix == ".py"]
    return sorted(f for f in files if f.name != "__main__.py")


def test_import_takes_under_100_ms(python: Any, root: Path) -> None:
    """The median of seven fresh processes stays under 100 ms of CPU time.

    Not of the clock: other tests run beside this one.
    """
    times = [float(python(CLOCK, cwd=root).stdout) for _ in range(7)]
    assert statistics.median(times) < 0.100, times


def test_import_loads_nothing_heavy(python: Any, root: Path) -> None:
    """``import kdsl`` loads no third-party package at all, and none of its own modules."""
    loaded = set(json.loads(python(f"import kdsl; {LOADED}", cwd=root).stdout))
    assert not loaded.intersection({*HEAVY, "numpy"})


def test_public_names_load_nothing_heavy(python: Any, root: Path) -> None:
    """Every public name can be had without torch, triton, cupy, Optuna or rich being loaded."""
    code = f"import kdsl; [getattr(kdsl, name) for name in kdsl.__all__]; {LOADED}"
    assert not set(json.loads(python(code, cwd=root).stdout)).intersection(HEAVY)


def test_rooms_need_numpy_alone(python: Any, root: Path) -> None:
    """The language, reference, runtime, partitions and integrations import where only NumPy is.

    All but the modules that speak to torch itself: they are loaded where torch is.
    """
    names = [".".join(f.relative_to(root).with_suffix("").parts) for f in language(root)]
    names += modules(root, "reference", "runtime", "parallel", "integrations")
    for name in (
        "kdsl.parallel.gradients",
        "kdsl.parallel.module",
        "kdsl.runtime.graph_inputs",
        "kdsl.runtime.row_constants",
        "kdsl.runtime.torch_ops",
        "kdsl.runtime.torch_rows",
        "kdsl.runtime.warm",
    ):
        names.remove(name)
    assert {"kdsl.grid", "kdsl.runtime", "kdsl.reference.attention"} <= set(names)
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))"
    python(f"{blocked}\nimport importlib\nfor n in {names!r}: importlib.import_module(n)", cwd=root)


def test_torchs_tracer_is_not_loaded(python: Any, root: Path) -> None:
    """Operations are registered without torch's tracer, which takes longer to load than torch."""
    pytest.importorskip("torch")
    python(
        "import sys, kdsl.runtime.torch_ops; assert 'torch._dynamo' not in sys.modules", cwd=root
    )


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    """Packages that a module imports when it is imported, type checking aside."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending.extend(ast.iter_child_nodes(node))


def test_the_language_speaks_numpy_alone(root: Path) -> None:
    """Modules of the language import NumPy, the standard library and each other."""
    allowed = {*sys.stdlib_module_names, "numpy", "kdsl"}
    wrong = {
        str(file.relative_to(root)): extra
        for file in language(root)
        if (extra := set(top_level_imports(ast.parse(file.read_text()))) - allowed)
    }
    assert not wrong


def test_top_level_imports_are_found() -> None:
    """The reader above sees imports in branches and classes, and leaves out those in functions."""
    code = (
        "import a.b\nfrom c.d import e\n"
        "if TYPE_CHECKING:\n    import f\nelse:\n    import g\n"
        "try:\n    import h\nexcept ImportError:\n    import i\n"
        "class K:\n    import j\n    def m(self):\n        import k\n"
    )
    assert sorted(top_level_imports(ast.parse(code))) == ["a", "c", "g", "h", "i", "j"]


def test_public_names_are_those_of_their_modules() -> None:
    """The lazy names are the very objects of the modules that they come from."""
    from kdsl.errors import KdslError
    from kdsl.grid import Grid

    assert kdsl.Grid is Grid
    assert kdsl.KdslError is KdslError
    assert set(kdsl.__all__) <= set(dir(kdsl))
    assert kdsl.__version__[0].isdigit()


def test_unknown_names_are_attribute_errors() -> None:
    """A misspelt name is reported as Python reports it, so that ``hasattr`` works."""
    with pytest.raises(AttributeError, match="module 'kdsl' has no attribute 'Gird'"):
        _ = kdsl.Gird
    assert not hasattr(kdsl, "torch")
