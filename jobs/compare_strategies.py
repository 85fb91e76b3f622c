"""Compare update strategies on a finished log: the same as `lsat-ray study`, for `ray job submit`.

    python jobs/compare_strategies.py --config jobs/configs/study_synthetic.yaml

The same command resumes; `--seeds 3` reuses what exists.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lsat_ray.cli.app import command, study
from lsat_ray.cli.console import run

app = command(study)

if __name__ == "__main__":
    run(app)
