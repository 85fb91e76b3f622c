"""Open a run's searches with Ray Tune's own API: the same as `lsat-ray search`.

python jobs/analyze_search.py --run runs/synthetic
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lsat_ray.cli.app import command, search
from lsat_ray.cli.console import run

app = command(search)

if __name__ == "__main__":
    run(app)
