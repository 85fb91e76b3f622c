"""A process that sees all installed packages but Ray and DeepSpeed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def view_of_packages(folder: Path) -> Path:
    """Link every installed package but Ray and DeepSpeed (and this project) into a folder."""
    site = Path(sys.modules["pytest"].__file__ or "").resolve().parent.parent
    view = folder / "site"
    view.mkdir(exist_ok=True)
    for entry in site.iterdir():
        if entry.name.lower().startswith(("ray", "deepspeed", "__editable__", "_lsat_ray", "lsat_ray")):
            continue
        if not (view / entry.name).exists():
            (view / entry.name).symlink_to(entry)
    return view


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    """Run code in such a process, in a session of its own."""
    head = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(view_of_packages(folder))!r}]\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('ray') is None and importlib.util.find_spec('deepspeed') is None\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-I", "-S", "-c", head + code]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str], seconds: float = 240.0) -> str:
    """Wait for the end and return what was printed; fail with what went wrong."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, out[-1500:] + err[-2500:]
    return out
