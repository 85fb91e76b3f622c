"""Strategies from outside reach the command line: by file, by module, by entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lsat_ray.cli.app import app
from lsat_ray.cli.plugins import load_plugins
from lsat_ray.errors import LsatError
from lsat_ray.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
RULES = """
from lsat_ray.strategies import STRATEGIES
from lsat_ray.strategies.short_term import ShortTerm

class Mine(ShortTerm):
    name = "mine"

STRATEGIES["mine"] = Mine
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take out again what a test registers or imports."""
    strategies, modules = dict(STRATEGIES), set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    STRATEGIES.clear()
    STRATEGIES.update(strategies)
    for name in set(sys.modules) - modules:
        if name.startswith(("my_rules_", "plugin_")):
            del sys.modules[name]


def test_a_file_is_imported_once(tmp_path: Path) -> None:
    file = tmp_path / "my_rules_file.py"
    file.write_text(RULES)
    load_plugins([str(file)])
    first = STRATEGIES["mine"]
    load_plugins([str(file)])
    assert STRATEGIES["mine"] is first


def test_a_module_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules_module.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    load_plugins(["my_rules_module"])
    assert "mine" in STRATEGIES


def test_an_installed_package_registers_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_rules.py").write_text(RULES.replace('STRATEGIES["mine"] = Mine', ""))
    info = tmp_path / "plugin_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lsat_ray.strategies]\nmine = plugin_rules:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    load_plugins()
    assert "mine" in STRATEGIES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module_here\n", ["ModuleNotFoundError", "line 1 of my_rules_bad.py"]),
        ("\n\nx = 1 / 0\n", ["ZeroDivisionError", "line 3 of my_rules_bad.py"]),
    ],
)
def test_a_plugin_that_does_not_import_is_one_clear_line(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "my_rules_bad.py"
    file.write_text(text)
    with pytest.raises(LsatError) as caught:
        load_plugins([str(file)])
    assert str(caught.value).startswith(f"--import {file}: ")
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(LsatError, match="no such file"):
        load_plugins([str(tmp_path / "my_rules_none.py")])


def test_a_file_with_the_name_of_a_known_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(LsatError, match="`json` exists already"):
        load_plugins([str(tmp_path / "json.py")])


def test_the_readme_strategy_is_known_to_the_command_line(tmp_path: Path) -> None:
    """`validate` makes every configured strategy, so the registered one is found and an unknown one is not."""
    file = tmp_path / "my_rules_cli.py"
    file.write_text(RULES)
    config = ["validate", str(ROOT / "jobs/configs/smoke.yaml"), "--set", "strategies=[full-retraining, mine]"]
    assert "'mine' is unknown" in CliRunner().invoke(app, config).output
    done = CliRunner().invoke(app, [*config, "--import", str(file)])
    assert done.exit_code == 0, done.output
