"""Imports go downward only. The rules are the table below; a module without a rule fails the test."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "aria_finetune"
ROOT = Path(__file__).parent.parent

TRAINING_STACK = frozenset({"torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate"})
HEAVY = TRAINING_STACK | {"av", "PIL", "numpy", "matplotlib"}
# Reached through the package only: a top-level `cli` would be somebody else's.
NEVER_TOP_LEVEL = frozenset({"cli", "data_formats", "recipes", "tests", "benchmarks"})


@dataclass(frozen=True)
class Layer:
    """What the modules of a layer may import beside themselves, and which packages they never do."""

    modules: tuple[str, ...]
    knows: tuple[str, ...] = ()
    never: frozenset[str] = frozenset()
    never_at_import: frozenset[str] = frozenset()


BUILDERS = (
    "errors",
    "redaction",
    "libraries",
    "staging",
    "data_formats",
    "media",
    "conversion",
    "data",
    "tiny",
    "memory",
    "kernels",
    "model",
    "adapter",
)
RUNS = (*BUILDERS, "recipe", "material", "run_folder", "progress", "routing_picture", "summary")

LAYERS: dict[str, Layer] = {
    "package": Layer(("",), never=HEAVY),
    "errors": Layer(("errors",), never=HEAVY),
    "redaction": Layer(("redaction",), never=HEAVY),
    "data_formats": Layer(("data_formats",), never=TRAINING_STACK),
    "recipes": Layer(("recipes",), never=HEAVY),
    "recipe": Layer(
        ("recipe",),
        knows=("errors",),
        never=HEAVY,
    ),
    "media": Layer(("media",), knows=("redaction", "errors"), never=TRAINING_STACK),
    "conversion": Layer(
        ("conversion",),
        knows=("data_formats", "media", "provenance", "staging", "redaction", "errors"),
        never=TRAINING_STACK,
    ),
    "lengthening": Layer(
        ("lengthening",),
        knows=("conversion", "data", "data_formats", "media", "model", "recipe", "sources", "errors"),
        never=frozenset({"torch", "peft", "trl", "datasets", "bitsandbytes", "accelerate"}),
        never_at_import=frozenset({"torch"}),
    ),
    "needles": Layer(
        ("needles",),
        knows=("conversion", "data", "data_formats", "media", "model", "recipe", "sources", "errors"),
        never=frozenset({"torch", "peft", "trl", "datasets", "bitsandbytes", "accelerate"}),
        never_at_import=frozenset({"torch", "matplotlib"}),
    ),
    "metrics": Layer(
        ("metrics",),
        knows=("data_formats", "errors"),
        never=TRAINING_STACK | {"av", "PIL", "matplotlib"},
        never_at_import=frozenset({"numpy"}),
    ),
    "staging": Layer(("staging",), knows=("errors",), never=HEAVY),
    "workplace": Layer(("workplace",), knows=("provenance", "staging", "errors"), never=HEAVY),
    "interruption": Layer(("interruption",), never=HEAVY),
    "provenance": Layer(("provenance",), never=HEAVY),
    "checkpoint": Layer(
        ("checkpoint",),
        knows=("provenance", "staging", "errors"),
        never=frozenset({"transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate"}),
    ),
    "data": Layer(
        ("data",),
        knows=("conversion", "data_formats", "media", "provenance", "redaction", "errors"),
        never=frozenset({"peft", "trl", "bitsandbytes"}),
    ),
    "libraries": Layer(("libraries",), never=HEAVY - {"transformers"}),
    "tiny": Layer(("tiny",), knows=("errors",), never=frozenset({"peft", "trl", "datasets", "bitsandbytes"})),
    "memory": Layer(("memory",), knows=("errors",), never=frozenset({"trl"})),
    "layer_progress": Layer(("layer_progress",), never=HEAVY),
    "durations": Layer(("durations",), never=HEAVY),
    "quantization": Layer(
        ("quantization",),
        knows=("checkpoint", "model", "provenance", "staging", "workplace", "errors"),
        never=frozenset({"peft", "trl", "datasets"}),
    ),
    "kernels": Layer(
        ("kernels",), never=frozenset({"transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate"})
    ),
    "model": Layer(
        ("model",),
        knows=("kernels", "tiny", "memory", "provenance", "redaction", "errors"),
        never=frozenset({"trl", "datasets"}),
    ),
    "adapter": Layer(
        ("adapter",),
        knows=(
            "checkpoint",
            "data",
            "model",
            "tiny",
            "provenance",
            "quantization",
            "staging",
            "workplace",
            "redaction",
            "errors",
        ),
        never=frozenset({"trl", "datasets"}),
    ),
    "merging": Layer(
        ("merging",),
        knows=("adapter", "layer_progress", "material", "model", "errors"),
        never=frozenset({"trl"}),
    ),
    "features": Layer(
        ("features",),
        knows=("checkpoint", "data", "data_formats", "media", "model", "provenance", "staging", "errors"),
        never=frozenset({"transformers", "peft", "trl", "datasets", "bitsandbytes"}),
    ),
    "run_folder": Layer(("run_folder",), knows=("staging", "redaction", "errors"), never=TRAINING_STACK),
    "progress": Layer(("progress",), knows=("durations", "run_folder", "errors"), never=frozenset({"trl"})),
    "planner": Layer(("planner",), knows=("model", "errors"), never=HEAVY),
    "run_size": Layer(("run_size",), knows=("checkpoint", "recipe"), never=TRAINING_STACK),
    "planning": Layer(
        ("planning",),
        knows=(
            "advice",
            "checkpoint",
            "data",
            "data_formats",
            "durations",
            "media",
            "memory",
            "model",
            "planner",
            "recipe",
            "run_size",
            "sources",
            "errors",
        ),
        never=frozenset({"peft", "trl", "bitsandbytes", "datasets", "accelerate"}),
        never_at_import=frozenset({"torch"}),
    ),
    "sources": Layer(
        ("sources",),
        knows=("data", "media", "model", "recipe", "errors"),
        never=frozenset({"peft", "trl", "bitsandbytes"}),
    ),
    "material": Layer(("material",), knows=(*BUILDERS, "recipe", "sources"), never=frozenset({"trl"})),
    "summary": Layer(
        ("summary",),
        knows=(*BUILDERS, "durations", "recipe", "material", "run_folder"),
        never=frozenset({"trl"}),
    ),
    "routing_picture": Layer(("routing_picture",), never=HEAVY - {"matplotlib"}),
    "viewing": Layer(
        ("viewing",),
        knows=("conversion", "data", "data_formats", "redaction"),
        never=TRAINING_STACK | {"av", "matplotlib"},
    ),
    "inspection": Layer(("inspection",), knows=(*RUNS, "sources", "viewing"), never=frozenset({"trl"})),
    "help": Layer(("format_help", "shipped_recipes"), knows=("data_formats", "errors"), never=HEAVY),
    "doctor": Layer(("doctor",), knows=(*BUILDERS, "recipe")),
    "specialisation": Layer(("specialisation",), knows=(*RUNS, "sources"), never=frozenset({"trl"})),
    "generation": Layer(
        ("generation",), knows=("data", "model", "errors"), never=frozenset({"trl", "peft", "datasets"})
    ),
    "evaluation": Layer(
        ("evaluation",),
        knows=(*RUNS, "generation", "metrics", "needles", "sources", "viewing"),
        never=frozenset({"trl"}),
    ),
    "speaking": Layer(
        ("speaking",),
        knows=(*BUILDERS, "generation", "layer_progress", "material", "metrics", "provenance", "recipe", "run_folder"),
        never=frozenset({"peft", "trl", "datasets", "bitsandbytes"}),
    ),
    "advice": Layer(("advice",), knows=("memory", "recipe", "errors"), never=frozenset({"trl"})),
    "resumption": Layer(
        ("resumption",),
        knows=("checkpoint", "data", "material", "provenance", "recipe", "redaction", "sources", "errors"),
        never=frozenset({"trl"}),
    ),
    "trainer": Layer(
        ("trainer",),
        knows=(
            "adapter",
            "checkpoint",
            "data",
            "generation",
            "interruption",
            "memory",
            "metrics",
            "model",
            "staging",
            "errors",
        ),
    ),
    "training": Layer(
        ("training", "run_report", "disk_need", "feature_cache"),
        knows=(
            *RUNS,
            "advice",
            "checkpoint",
            "features",
            "interruption",
            "layer_progress",
            "metrics",
            "planner",
            "planning",
            "provenance",
            "resumption",
            "run_size",
            "sources",
            "staging",
            "trainer",
        ),
    ),
    "conversion_progress": Layer(("conversion_progress",), knows=("conversion",), never=TRAINING_STACK),
    "cli": Layer(
        ("cli",),
        knows=(
            *RUNS,
            "interruption",
            "help",
            "doctor",
            "conversion_progress",
            "evaluation",
            "speaking",
            "inspection",
            "specialisation",
            "lengthening",
            "needles",
            "planning",
            "layer_progress",
            "merging",
            "quantization",
            "training",
        ),
        never_at_import=HEAVY,
    ),
}


@dataclass(frozen=True)
class Import:
    """One imported name; `at_import` is false inside functions and under `if TYPE_CHECKING`."""

    target: str
    line: int
    at_import: bool


def violations(root: Path) -> list[str]:
    """Every import below `root/aria_finetune` that the table does not allow, as `module:line: what`."""
    modules = _modules(root)
    imports = {module: list(_imports(module, path, set(modules))) for module, path in modules.items()}
    found: list[str] = []
    for module, wanted in imports.items():
        layer = _layer_of(module)
        if layer is None:
            found.append(f"{module}: has no layer in tests/test_imports.py")
            continue
        found += [f"{module}:{entry.line}: {text}" for entry in wanted for text in _judge(layer, entry)]
        for package in sorted(LAYERS[layer].never_at_import):
            if trail := _trail(module, package, imports):
                found.append(f"{module}: importing it imports {package}, by way of {' -> '.join(trail)}")
    return found


def _judge(layer: str, entry: Import) -> Iterator[str]:
    head = entry.target.split(".")[0]
    if head == PACKAGE:
        target_layer = _layer_of(entry.target)
        # The package itself holds the version and imports nothing, so all may know it.
        if target_layer not in (layer, "package", None, *LAYERS[layer].knows):
            yield f"{layer} may not import {entry.target}"
    elif head in LAYERS[layer].never:
        yield f"{layer} may not import {head}"
    elif head in NEVER_TOP_LEVEL:
        yield f"{head} is imported as {PACKAGE}.{head}"


def _trail(module: str, package: str, imports: dict[str, list[Import]]) -> list[str] | None:
    """The modules through which importing `module` imports `package`, or None."""
    open_ends, seen = [[module]], {module}
    while open_ends:
        trail = open_ends.pop()
        for entry in imports[trail[-1]]:
            if entry.at_import and entry.target.split(".")[0] == package:
                return trail
            for loaded in _loaded_by(entry.target):
                if entry.at_import and loaded in imports and loaded not in seen:
                    seen.add(loaded)
                    open_ends.append([*trail, loaded])
    return None


def _loaded_by(target: str) -> list[str]:
    """A module and the packages above it, all of which Python runs."""
    parts = target.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _layer_of(module: str) -> str | None:
    inner = module.removeprefix(PACKAGE).removeprefix(".").split(".")[0]
    return next((name for name, layer in LAYERS.items() if inner in layer.modules), None)


def _modules(root: Path) -> dict[str, Path]:
    """Dotted names and files, the symlinked folders included."""
    files = [Path(folder) / name for folder, _, names in os.walk(root / PACKAGE, followlinks=True) for name in names]
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
        if path.suffix == ".py" and path.exists()
    }


def _imports(module: str, path: Path, known: set[str]) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node, at_import in _statements(ast.parse(path.read_text(encoding="utf-8")), at_import=True):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield Import(name if name in known else source, node.lineno, at_import)


def _statements(node: ast.AST, *, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        runs = at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            runs = False
        yield child, runs
        yield from _statements(child, at_import=runs)


def test_the_project_keeps_to_the_table() -> None:
    assert violations(ROOT) == []


def test_every_module_is_looked_at() -> None:
    modules = _modules(ROOT)
    assert f"{PACKAGE}.data_formats.record" in modules, "the symlinked folders were not followed"
    assert f"{PACKAGE}.recipe" in modules
    assert f"{PACKAGE}.cli" in modules


def test_the_table_has_no_cycle() -> None:
    def reachable(layer: str) -> set[str]:
        below = set(LAYERS[layer].knows)
        return below.union(*(reachable(name) for name in below))

    assert [layer for layer in LAYERS if layer in reachable(layer)] == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("data_formats/csv.py", "import torch", "data_formats may not import torch"),
        ("data_formats/csv.py", "from ..errors import UserError", "data_formats may not import aria_finetune.errors"),
        ("data_formats/csv.py", "from aria_finetune import recipe", "data_formats may not import aria_finetune.recipe"),
        ("media/images.py", "def f():\n    from torch import nn", "media may not import torch"),
        ("adapter/merge.py", "from aria_finetune.training import train", "adapter may not import"),
        ("model/lora.py", "import aria_finetune.data.rows", "model may not import aria_finetune.data.rows"),
        ("model/lora.py", "from aria_finetune.training import train", "model may not import"),
        ("errors.py", "from aria_finetune.recipe import Recipe", "errors may not import"),
        ("recipe.py", "import numpy.typing", "recipe may not import numpy"),
        ("training.py", "from data_formats import record", "data_formats is imported as aria_finetune.data_formats"),
        ("cli.py", "import matplotlib.pyplot", "importing it imports matplotlib"),
        ("cli.py", "try:\n    import av\nexcept ImportError:\n    raise", "importing it imports av"),
        ("cli.py", "from aria_finetune.training import train", "importing it imports trl, by way of"),
        ("novelty.py", "", "has no layer"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, path: str, source: str, expected: str) -> None:
    _plant(tmp_path, {path: source})
    found = violations(tmp_path)
    assert any(expected in text for text in found), found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli.py", "def train():\n    import torch\n    from aria_finetune.training import train"),
        ("cli.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("data/rows.py", "from aria_finetune.data_formats.record import Record\nfrom . import chat"),
        ("adapter/merge.py", "import torch\nfrom aria_finetune.model import lora"),
    ],
)
def test_an_allowed_import_is_left_alone(tmp_path: Path, path: str, source: str) -> None:
    _plant(tmp_path, {path: source})
    assert violations(tmp_path) == []


def test_the_command_line_starts_without_heavy_packages() -> None:
    code = f"import sys, {PACKAGE}.cli; print(*sorted(set(sys.modules) & set({sorted(HEAVY)!r})))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def _plant(root: Path, sources: dict[str, str]) -> None:
    """A small tree of the same shape, sound but for `sources`."""
    sound = {
        "__init__.py": "",
        "errors.py": "",
        "recipe.py": "from aria_finetune.errors import UserError",
        "data_formats/__init__.py": "",
        "data_formats/record.py": "",
        "data/__init__.py": "",
        "data/chat.py": "",
        "model/__init__.py": "",
        "model/lora.py": "import torch",
        "training.py": "import trl\nfrom aria_finetune.model import lora",
        "cli.py": "import typer\nfrom aria_finetune.recipe import load_recipe",
    }
    for name, source in {**sound, **sources}.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
