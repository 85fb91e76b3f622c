"""The house: who imports what, and a core that needs neither Ray nor DeepSpeed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lsat_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))

ROOMS = [
    "errors",
    "config",
    "data",
    "evaluation",
    "prompts",
    "backbone",
    "adapters",
    "scoring",
    "training",
    "baselines",
    "strategies",
    "report",
    "runs",
    "distributed",
    "cli",
]
"""Imports point from later rooms to earlier ones."""


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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room not in ROOMS:
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "lsat_ray" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{path.name} in {room} imports {name}"


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
    site = Path(sys.modules["pytest"].__file__ or "").resolve().parent.parent
    view = tmp_path / "site"
    view.mkdir()
    for entry in site.iterdir():
        if not entry.name.lower().startswith(("ray", "deepspeed", "__editable__", "_lsat_ray", "lsat_ray")):
            (view / entry.name).symlink_to(entry)
    core = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in MODULES
        if "distributed" not in p.parts
    ]
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(view)!r}]\n"
        "import importlib, importlib.util\n"
        "assert importlib.util.find_spec('ray') is None and importlib.util.find_spec('deepspeed') is None\n"
        f"for name in {core!r}: importlib.import_module(name)\n"
        "print(len(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_the_package_does_no_work() -> None:
    code = 'import sys, lsat_ray.config, lsat_ray.strategies; print(*(m in sys.modules for m in ("torch", "ray")))'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
