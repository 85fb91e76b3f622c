"""Fault points: every place where a run changes what is on the disk, found by running it once."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Visit = Callable[[str], None]
"""Hears the name of every point that is passed."""


def instrument(visit: Visit) -> None:
    """Let every call that writes, publishes, saves or searches pass its points, in this process and for good.

    A call has a point before and a point after it; a write to a file has one in its middle too, when half of the bytes
    are there. Names hold no random parts, so that two runs of one config pass the same points in the same order.
    """
    from lsat_ray import files
    from lsat_ray.adapters.store import AdapterStore
    from lsat_ray.runs.ledger import Ledger
    from lsat_ray.training.checkpoint import Checkpointer

    _everywhere(files.write_atomic, lambda path, _: f"write {path.name}", visit)
    _everywhere(files.append_line, lambda path, _: f"append {path.name}", visit)
    _method(Ledger, "append", lambda _, seed, name, t, stage, **__: f"record {stage} {name} {t}", visit)
    _method(AdapterStore, "_publish", lambda _, digest, *__: f"store {digest[:8]}", visit)
    _method(Checkpointer, "save", lambda _, digest, step, *__: f"checkpoint {digest[:8]} {step}", visit)
    _method(Checkpointer, "clear", lambda _, digest: f"clear {digest[:8]}", visit)
    files._take_place = _around(files._take_place, lambda _, final, __: f"rename {final.name[:13]}", visit)
    files._write_all = _halves(files._write_all, visit)
    for backend in _backends():
        _method(backend, "keep_search", lambda _, name, *__: f"search {name}", visit)
        _method(backend, "publish", lambda _, models, version: f"swap {version}", visit)


def _backends() -> list[type]:
    """Return the backends that are loaded; the local one does not load Ray."""
    names = {"lsat_ray.runs.local": "LocalBackend", "lsat_ray.distributed.backend": "RayBackend"}
    return [getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules]


def _around(call: Callable[..., Any], name: Callable[..., str], visit: Visit) -> Callable[..., Any]:
    @functools.wraps(call)
    def passed(*args: Any, **kwargs: Any) -> Any:
        label = name(*args, **kwargs)
        visit(f"before {label}")
        result = call(*args, **kwargs)
        visit(f"after {label}")
        return result

    return passed


def _method(owner: type, method: str, name: Callable[..., str], visit: Visit) -> None:
    setattr(owner, method, _around(getattr(owner, method), name, visit))


def _everywhere(call: Callable[..., Any], name: Callable[[Path, Any], str], visit: Visit) -> None:
    """Replace a function in every module that has imported it by its name."""
    passed = _around(call, name, visit)
    for module in [m for n, m in sys.modules.items() if n.startswith("lsat_ray")]:
        if getattr(module, call.__name__, None) is call:
            setattr(module, call.__name__, passed)


def _halves(write: Callable[[int, bytes], None], visit: Visit) -> Callable[[int, bytes], None]:
    def passed(handle: int, data: bytes) -> None:
        write(handle, data[: len(data) // 2])
        visit("amid a write")
        write(handle, data[len(data) // 2 :])

    return passed
