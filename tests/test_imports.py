"""Modules of the package import each other one way, without a circle."""

import ast
import graphlib

import pytest

from tests.conftest import ROOT

PACKAGE = "kst_jax"


def modules():
    """Paths of all modules, by full name; a package goes by its own name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(tree, name, is_package, known):
    """Modules that a module imports anywhere: in functions and for types as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".") if node.level else []
            if node.level:
                base = base[: len(base) + is_package - node.level]
            base = ".".join([*base, *filter(None, [node.module])])
            named = [f"{base}.{alias.name}" for alias in node.names]
            named = [full if full in known else base for full in named]
        else:
            continue
        yield from (other for other in named if other in known and other != name)


def graph():
    known = modules()
    return {
        name: set(
            imported(ast.parse(path.read_text()), name, path.stem == "__init__", known)
        )
        for name, path in known.items()
    }


def folder(name):
    """The module or folder directly below the package that a module lies in."""
    return ".".join(name.split(".")[:2])


def folders(graph):
    found = {}
    for name, others in graph.items():
        here = found.setdefault(folder(name), set())
        here |= {folder(other) for other in others} - {folder(name), PACKAGE}
    return found


def circle(graph):
    """The modules of a circle, or none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("level", [dict, folders], ids=["modules", "folders"])
def test_imports_run_one_way(level):
    assert circle(level(graph())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import kst_jax.b",
        "from kst_jax import b",
        "from kst_jax.b import thing",
        "from . import b",
        "from .b import thing",
        "def function():\n    from kst_jax import b",
        "if TYPE_CHECKING:\n    from kst_jax.b import Thing",
    ],
)
def test_an_import_is_seen_wherever_it_stands(text):
    known = {"kst_jax", "kst_jax.a", "kst_jax.b"}
    assert list(imported(ast.parse(text), "kst_jax.a", False, known)) == ["kst_jax.b"]


def test_a_circle_is_seen_between_modules_and_between_folders():
    one_way = {"kst_jax.a.x": {"kst_jax.b.y"}, "kst_jax.b.z": {"kst_jax.a.w"}}
    assert circle(one_way) == []
    assert sorted(set(circle(folders(one_way)))) == ["kst_jax.a", "kst_jax.b"]
    assert circle({"kst_jax.a": {"kst_jax.b"}, "kst_jax.b": {"kst_jax.a"}})
