"""lsat_ray: a streaming LLM recommender, replayed, compared and served on Ray.

The names a notebook needs are imported when they are first used; `import lsat_ray` itself does no work.

    import lsat_ray
    config = lsat_ray.load_config("my.yaml", ["engine.backend=local"])
    folder = lsat_ray.replay(config)
    lsat_ray.RunReader(folder).metrics
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsat_ray.cli.front import load_config, replay, serve, study, sweep, validate
    from lsat_ray.client import AsyncClient, Client
    from lsat_ray.config import Experiment
    from lsat_ray.errors import LsatError
    from lsat_ray.report.reader import RunReader
    from lsat_ray.scoring.model import Model
    from lsat_ray.strategies import STRATEGIES

__version__ = "0.1.0"

_HOMES = {
    "load_config": "cli.front",
    "validate": "cli.front",
    "replay": "cli.front",
    "study": "cli.front",
    "sweep": "cli.front",
    "serve": "cli.front",
    "Client": "client",
    "AsyncClient": "client",
    "Experiment": "config",
    "LsatError": "errors",
    "RunReader": "report.reader",
    "Model": "scoring.model",
    "STRATEGIES": "strategies",
}
"""Module of every name that is imported on first use."""

__all__ = [
    "STRATEGIES",
    "AsyncClient",
    "Client",
    "Experiment",
    "LsatError",
    "Model",
    "RunReader",
    "__version__",
    "load_config",
    "replay",
    "serve",
    "study",
    "sweep",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lsat_ray' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lsat_ray.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
