"""The package: everything imported is declared and pinned, one version, one command, typed."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lsat_ray

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(r).name) for r in requirements}


def imported(*folders: str) -> dict[str, str]:
    """Return the top-level modules that the folders import, each with one file that does."""
    found: dict[str, str] = {}
    own = {"lsat_ray", "jobs", "benchmarks", "tests"} | {p.stem for p in (ROOT / "tests").rglob("*.py")}
    for path in [p for folder in folders for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for top in {m.split(".")[0] for m in modules} - own - set(sys.stdlib_module_names):
                found[top] = str(path.relative_to(ROOT))
    return found


def undeclared(modules: dict[str, str], declared: set[str]) -> list[str]:
    providers = importlib.metadata.packages_distributions()
    return [
        f"{module} ({place})"
        for module, place in modules.items()
        if not {canonicalize_name(d) for d in providers.get(module, [module])} & declared
    ]


def test_everything_that_the_package_imports_is_declared() -> None:
    declared = names(PROJECT["dependencies"]) | names(EXTRAS["quantization"])
    assert undeclared(imported("lsat_ray", "jobs"), declared) == []


def test_everything_that_tests_and_benchmarks_import_is_declared() -> None:
    extras = [r for requirements in EXTRAS.values() for r in requirements]
    declared = names(PROJECT["dependencies"]) | names(extras)
    assert undeclared(imported("tests", "benchmarks"), declared) == []


def test_every_dependency_is_used_somewhere() -> None:
    """Imported, or named in a string (as `importlib.resources.files("package")` does)."""
    providers = importlib.metadata.packages_distributions()
    trees = [ast.parse(p.read_text()) for p in (ROOT / "lsat_ray").rglob("*.py")]
    strings = {n.value for t in trees for n in ast.walk(t) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    used = {canonicalize_name(d) for m in {*imported("lsat_ray"), *strings} for d in providers.get(m, [m])}
    assert names(PROJECT["dependencies"]) - used == set()


def test_every_dependency_is_pinned_to_a_version_that_the_project_allows() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for text in [*PROJECT["dependencies"], *EXTRAS["dev"]]:
        wanted = Requirement(text)
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted.name} is not pinned in constraints.txt"
        assert wanted.specifier.contains(pin), f"{text} does not allow the pinned {pin}"


def test_there_is_one_version() -> None:
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    places = [*ROOT.glob("*.toml"), ROOT / "CITATION.cff", ROOT / "CHANGELOG.md"]
    for place in places:
        if place.is_file() and (found := re.search(r'^version: *"?([\d.]+)', place.read_text(), re.MULTILINE)):
            assert found.group(1) == lsat_ray.__version__, place
    assert f"## {lsat_ray.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_no_module_is_ignored_and_so_left_out_of_the_wheel() -> None:
    """What builds the wheel leaves out what .gitignore names, tracked or not."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    modules = [str(p.relative_to(ROOT)) for p in (ROOT / "lsat_ray").rglob("*.py")]
    words = ["git", "check-ignore", "--no-index", *modules]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_a_wheel_in_an_empty_environment_has_the_command(tmp_path: Path) -> None:
    """Build the wheel, install it with its dependencies in a new environment, ask for help and validate a config."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=900)
    (wheel,) = tmp_path.glob("lsat_ray-*.whl")
    assert lsat_ray.__version__ in wheel.name
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "lsat_ray").rglob("*.py")} <= packed
    assert "lsat_ray/py.typed" in packed
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True, timeout=360)
    python = tmp_path / "env" / "bin" / "python"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, wheel], check=True, timeout=2400)
    command = tmp_path / "env" / "bin" / "lsat-ray"
    help_ = subprocess.run([command, "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=180)
    assert help_.returncode == 0 and "replay" in help_.stdout
    done = subprocess.run([command, "validate"], capture_output=True, text=True, cwd=tmp_path, timeout=360)
    assert done.returncode == 0 and "valid" in done.stdout, done.stdout + done.stderr
