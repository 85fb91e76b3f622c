"""What every command prints, and how it ends."""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from lsat_ray.errors import LsatError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

console = Console(highlight=False, soft_wrap=True)
_began = time.time()


QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What keeps libraries from talking when nothing is wrong; a variable that is set already stays."""


def quieten() -> None:
    """Keep the libraries' chatter out of the terminal; call it before they are imported."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    libraries = "|".join(("transformers", "torch", "peft", "deepspeed", "ray"))
    warnings.filterwarnings("ignore", category=FutureWarning, module=rf"({libraries})\b")


def say(text: str) -> None:
    """Print one line of progress with the seconds since the start; it is never wrapped."""
    seconds = f"{time.time() - _began:7.1f} s"
    console.print(f"[dim]{seconds}[/dim]  ", end="")
    console.print(text, markup=False)


def run(command: Callable[[], object]) -> None:
    """Run a command and end the process with its status.

    What is registered for the end runs as ever; Python does not then take the modules apart one by one, which takes
    one to three seconds once torch and Ray are loaded.
    """
    try:
        command()
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


def command_line() -> str:
    """Return the command that this process was started with, as one would type it."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", "lsat_ray"]
    elif program.suffix == ".py":
        words = ["python", os.path.relpath(program)]
    else:
        words = [program.name]
    return shlex.join([*words, *sys.argv[1:]])


@contextmanager
def one_clear_error(resumes: bool = True) -> Iterator[None]:
    """End with one line where the input is at fault (exit status 2) or the user stopped the command (130).

    Args:
        resumes: whether the same command goes on where it was stopped.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait for the clean-up
        remedy = f"; go on with: {command_line()}" if resumes else ""
        console.print(f"\nstopping{remedy}", style="yellow", markup=False)
        raise KeyboardInterrupt

    quieten()
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, stop) if here else None
    try:
        yield
    except LsatError as error:
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        if here:
            signal.signal(signal.SIGINT, before)


def print_table(folder: Path, noise: float | None) -> None:
    """Print a finished run's table of mean AUC, with its noise floor."""
    import pandas as pd

    from lsat_ray.report import TABLE, tables

    table = pd.read_csv(folder / TABLE).fillna({"verdict": ""})
    tables.show(table, console, f"mean AUC over the tested periods of {folder.name}", noise=noise)
