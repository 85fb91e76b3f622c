"""The pages: what they cite, link and tell one to run exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lsat_ray.cli.app import app
from lsat_ray.config import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "cluster/README.md",
    ROOT / "benchmarks/results/README.md",
    ROOT / "tests/chaos/README.md",
]
NUMBER = r"\d+(?:\.\d+|[a-z]\b)?"
CITATION = re.compile(rf"methods\.md[)`]*\s+({NUMBER}(?:(?:, | and |-){NUMBER})*)")


def sections() -> set[str]:
    """Return the numbers of the headings of docs/methods.md."""
    text = (ROOT / "docs/methods.md").read_text()
    return set(re.findall(rf"^#{{2,3}} ({NUMBER}) ", text, re.MULTILINE))


def citations() -> list[tuple[str, str]]:
    """Return (file, section) of every citation of methods.md in code, configs and pages."""
    folders = ("lsat_ray", "jobs", "benchmarks", "tests")
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".yaml") and p != Path(__file__)]
    found = []
    for path in [*files, *PAGES]:
        for numbers in CITATION.findall(path.read_text()):
            found += [(str(path.relative_to(ROOT)), number) for number in re.findall(NUMBER, numbers)]
    return found


def test_every_cited_section_of_the_methods_exists() -> None:
    cited, known = citations(), sections()
    assert len(cited) > 30, "the citations are not found: the test looks in the wrong place"
    assert [c for c in cited if c[1] not in known] == []


def test_the_citations_are_read_as_they_are_written() -> None:
    text = "(methods.md 2 and 7.3) methods.md 0.2-0.3. methods.md 2, Fig. 3; methods.md 0.2, steps 1-3, methods.md 5b,"
    assert CITATION.findall(text) == ["2 and 7.3", "0.2-0.3", "2", "0.2", "5b"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", page.read_text()):
        link = target[0] or target[1]
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def commands() -> list[tuple[str, list[str]]]:
    """Return (page, words) of every lsat-ray command that a page or a config shows in a block."""
    found = []
    for page in [*PAGES, *(ROOT / "jobs/configs").glob("*.yaml")]:
        for line in page.read_text().splitlines():
            shown = re.match(r"(?: {4}|#   )(?:\$ )?(lsat-ray .*|python jobs/.*)$", line)
            if shown and "..." not in line:
                found.append((page.name, shlex.split(shown.group(1).rstrip("\\"), comments=True)))
    return found


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60])
def test_shown_commands_are_understood(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command and its options exist, and so do the files of this repository that it names."""
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        command = words[1 : 3 if words[1] == "trial" else 2]
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, f"{page}: {command}"
        for option in [w for w in words if w.startswith("--")]:
            assert option in shown.output, f"{page}: {option}"
    for word in words:
        if word.startswith("jobs/"):
            assert (ROOT / word).is_file(), f"{page}: {word}"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_opens_with_its_command_and_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ML1M", "AMAZON", "LOG", "LSAT_RAY_DATA"):
        monkeypatch.setenv(variable, "/logs")
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"jobs/configs/{path.name}" in line for line in head)
    assert load(path).name == path.stem


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert f"def {name}" in (ROOT / file).read_text(), f"{file}::{name}"


def test_the_readme_lists_the_rooms_of_the_house_in_their_order() -> None:
    from test_architecture import PACKAGE, ROOMS

    block = (ROOT / "README.md").read_text().partition("## The house")[2].partition("\n## ")[0]
    listed = re.findall(r"^ {6}(\w+)(?:\.py|/)", block, re.MULTILINE)
    there = {p.stem if p.suffix == ".py" else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert set(listed) == {r for r in there if not r.startswith("__")}
    order = [r for r in ROOMS if r in listed]
    assert [r for r in listed if r in order] == order


def test_the_results_index_and_the_results_agree() -> None:
    """Every file or folder of results is named in the index, and everything that the index names is there."""
    folder = ROOT / "benchmarks/results"
    rows = [line.split("|")[1] for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    there = {p.name for p in folder.iterdir()} - {"README.md"}
    for name in named:
        assert list(folder.glob(name.rstrip("/"))), f"{name} is in the index and not there"
    for name in there:
        assert any(Path(name).match(pattern.rstrip("/")) for pattern in named), f"{name} is not in the index"


def test_the_public_checks_run_what_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {"replay", "test", "test-slow", "chaos", "lint", "install", "clean"} <= targets
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [s["run"] for job in ci["jobs"].values() for s in job["steps"] if "run" in s]
    assert "make test" in steps
    for text in (ROOT / "CONTRIBUTING.md", ROOT / "README.md"):
        for target in re.findall(r"^ {4}(?:\$ )?make ([a-z-]+)", text.read_text(), re.MULTILINE):
            assert target in targets
