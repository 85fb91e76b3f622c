"""Run a study for several values of one setting: the same as `lsat-ray sweep`, for `ray job submit`.

    python jobs/sweep.py --config jobs/configs/map_synthetic.yaml --vary "data.synthetic.drift=[0.0, 0.6, 1.2]"

The same command resumes; values that were run before are reused.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lsat_ray.cli.app import command, sweep
from lsat_ray.cli.console import run

app = command(sweep)

if __name__ == "__main__":
    run(app)
