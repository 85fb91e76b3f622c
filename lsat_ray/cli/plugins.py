"""Strategies from outside: files and modules named on the command line, and installed packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from lsat_ray.errors import LsatError

GROUP = "lsat_ray.strategies"
"""Entry-point group: a name and either a module that registers strategies or one strategy's class."""


def load_plugins(modules: Sequence[str] = ()) -> None:
    """Import what registers strategies in `lsat_ray.strategies.STRATEGIES`.

    Only the driver plans, so the workers need none of it.

    Args:
        modules: files (`my_rules.py`) or module names (`my_package.rules`).

    Raises:
        LsatError: naming the file, module or entry point that does not import.
    """
    from lsat_ray.strategies import STRATEGIES

    for point in entry_points(group=GROUP):
        try:
            loaded = point.load()
        except Exception as error:
            raise LsatError(f"entry point {GROUP}: {point.name} ({point.value}): {_reason(error)}") from error
        if callable(loaded):
            STRATEGIES.setdefault(point.name, loaded)
    for module in modules:
        try:
            _import(module)
        except Exception as error:
            raise LsatError(f"--import {module}: {_reason(error)}") from error


def _import(module: str) -> None:
    if not module.endswith(".py"):
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        importlib.import_module(module)
        return
    path = Path(module).expanduser().resolve()
    known = sys.modules.get(path.stem)
    if known is not None and known.__file__ == str(path):
        return
    other = importlib.util.find_spec(path.stem)
    if other is not None and other.origin != str(path):
        raise LsatError(f"a module `{path.stem}` exists already ({other.origin}); rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LsatError("no such file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[path.stem]
        raise


def _reason(error: Exception) -> str:
    """Say what went wrong in one line, with the place in the plugin for errors that Python raised."""
    text = " ".join(str(error).split())
    if isinstance(error, LsatError):
        return text
    at, trace = "", error.__traceback__
    while trace is not None:
        at = f" (line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name})"
        trace = trace.tb_next
    return f"does not import: {type(error).__name__}: {text}{at}"
