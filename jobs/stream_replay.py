"""Replay a stream: the same as `lsat-ray replay`, for `ray job submit`.

    python jobs/stream_replay.py --config jobs/configs/synthetic.yaml
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/stream_replay.py --config ...

The same command resumes where it was stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lsat_ray.cli.app import command, replay
from lsat_ray.cli.console import run

app = command(replay)

if __name__ == "__main__":
    run(app)
