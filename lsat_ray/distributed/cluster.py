"""Join the cluster that is there, or start one on this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
import time
from typing import Any

from lsat_ray.errors import LsatError

LOST = "the cluster's head does not answer; give the same command again"
PAUSE_S = 5.0
"""Seconds between two looks at the head."""
LOOK_S = 20.0
"""Seconds that the head has to answer."""
WATCHER = "watches the head"
"""Name of the thread that looks."""
LOOKS = 2
"""Looks in a row that find no head until it counts as lost; the first after this process was stopped finds none."""
STARTS = 3
"""Times that a cluster on this machine is started."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # seconds until a worker that died is missed
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",  # a worker that hangs is killed then; its task is done again
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # on busy nodes one that is not ready in 5 is killed again and again
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "|".join(
        (
            r"Task ServeController\.\w+ failed\. .* was killed by `ray\.kill`",  # whenever Serve is ended
            r"PYTHON worker processes have been started on node",  # actors that ask for little CPU, as ours do
        )
    ),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def settle() -> None:
    """Set what Ray reads when it is first imported; call it before any import of this room's other modules."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    if "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # keeps the node on 127.0.0.1
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def joins() -> bool:
    """Return whether `connect` joins a cluster that is there."""
    import ray

    return ray.is_initialized() or "RAY_ADDRESS" in os.environ


def connect() -> bool:
    """Connect to the cluster of `RAY_ADDRESS` or of the running job, else start one here; this process ends with it.

    Returns:
        True when a cluster was started here, so that the caller shuts it down.

    Raises:
        LsatError: when none could be started, or none answers at `RAY_ADDRESS`.
    """
    here = _joined_or_started()
    if not any(thread.name == WATCHER for thread in threading.enumerate()):
        threading.Thread(target=_end_with_head, args=(here,), name=WATCHER, daemon=True).start()
    return here


def _joined_or_started() -> bool:
    settle()
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": False}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise LsatError(f"RAY_ADDRESS: no cluster answers at {address}; start one, or unset it") from error
        return False
    for attempt in range(STARTS):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return True
        except Exception as error:  # Ray waits 30 s for its own processes; a busy machine may need longer
            ray.shutdown()
            if attempt == STARTS - 1:
                reason = " ".join(str(error).split())[:300]
                raise LsatError(
                    f"ray: no cluster could be started on this machine ({reason}); is it very busy, or /tmp full? "
                    "The same command goes on; --set engine.backend=local needs no cluster"
                ) from error
    raise AssertionError


def disconnect() -> None:
    """Shut down the cluster that `connect` started.

    The autoscaler's monitor, which has nothing to do on one machine, is ended first: `ray.shutdown` would wait a second
    for it, while it tries to say good-bye to a head that has ended.
    """
    import ray

    if node := getattr(ray._private.worker, "_global_node", None):
        node.kill_monitor(check_alive=False)
    ray.shutdown()


def _end_with_head(here: bool) -> None:
    """End this process, with one line, when the head is lost.

    Whatever asks a lost head waits until Ray ends the process, a minute later and in its own words. An end at any time
    loses nothing: the same command goes on.
    """
    import ray

    silent = 0
    while ray.is_initialized():
        time.sleep(PAUSE_S)
        silent = 0 if _answers() else silent + 1
        if silent == LOOKS and ray.is_initialized():
            sys.stdout.write(f"error: {LOST}\n")
            sys.stdout.flush()
            node = getattr(ray._private.worker, "_global_node", None)
            if here and node:
                with contextlib.suppress(Exception):
                    node.kill_all_processes(check_alive=False, allow_graceful=False)
            os._exit(2)


def _answers() -> bool:
    """Return whether the head answers in time."""
    import ray

    found = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):
            ray.nodes()
            found.set()

    threading.Thread(target=ask, daemon=True).start()  # the call itself may wait for a minute
    return found.wait(LOOK_S)
