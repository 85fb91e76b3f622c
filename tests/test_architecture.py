"""The house: who imports what, and a core that needs neither Ray nor DeepSpeed."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from rayless import finish, start

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lsat_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))

ROOMS = [
    "errors",
    "config",
    "files",
    "data",
    "evaluation",
    "prompts",
    "backbone",
    "adapters",
    "scoring",
    "training",
    "generative",
    "baselines",
    "strategies",
    "report",
    "runs",
    "serving",
    "client",
    "distributed",
    "cli",
    "__main__",
    "__init__",
]
"""Imports point from later rooms to earlier ones; `__init__` is the package itself, which offers names of all rooms."""


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def users(top: str) -> list[str]:
    return [
        str(p.relative_to(PACKAGE)) for p in MODULES if any(n == top or n.startswith(f"{top}.") for n in imported(p))
    ]


def test_only_the_distributed_room_imports_ray() -> None:
    assert users("ray"), "nothing imports ray: the test looks in the wrong place"
    assert [u for u in users("ray") if not u.startswith("distributed/")] == []


def test_one_module_imports_deepspeed() -> None:
    assert users("deepspeed") == ["distributed/deepspeed_engine.py"]


def room_of(path: Path) -> str:
    """Return the room that a module stands in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS, f"{room} is a new room: give it its place in ROOMS"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "lsat_ray" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{path.name} in {room} imports {name}"


def circle_in(package: Path) -> list[str]:
    """Return modules that import one another in a circle, or none; imports for types alone count too."""
    modules = {
        ".".join(p.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): p
        for p in package.rglob("*.py")
    }
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[name] |= {n if n in modules else node.module for n in inner}
        graph[name] &= modules.keys()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle_in(PACKAGE) == []


def test_a_circle_is_found_even_where_it_is_for_types_alone(tmp_path: Path) -> None:
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("from house import a\n")
    (package / "a.py").write_text("from house.b import B\n")
    (package / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.a import A\n")
    assert set(circle_in(package)) == {"house.a", "house.b"}
    (package / "b.py").write_text("from house import c\n")
    (package / "c.py").write_text("")
    assert circle_in(package) == []
    (package / "c.py").write_text("from house import b, a_name_of_the_package\n")
    assert circle_in(package) != []


@pytest.mark.parametrize("top", ["pickle", "marshal", "shelve"])
def test_nothing_is_unpickled_from_disk(top: str) -> None:
    assert users(top) == []


def test_no_eval_and_only_safe_yaml() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called not in ("yaml.load", "torch.load", "pickle.load"), path


def test_the_core_imports_where_neither_ray_nor_deepspeed_is_installed(tmp_path: Path) -> None:
    """Show a process all installed packages but those two, and import every module of the core."""
    core = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in MODULES
        if "distributed" not in p.parts
    ]
    code = f"import importlib\nfor name in {core!r}: importlib.import_module(name)\nprint(len(sys.modules))\n"
    assert int(finish(start(code, tmp_path))) > len(core)


def test_importing_the_package_does_no_work() -> None:
    code = 'import sys, lsat_ray.config, lsat_ray.strategies; print(*(m in sys.modules for m in ("torch", "ray")))'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=180)
    assert done.stdout.split() == ["False", "False"], done.stderr
