"""`engine.on_failure: keep-last` on Ray: the same ledger, scores and adapters as in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.harness import CONFIG, compare

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = '''
from dataclasses import replace

from lsat_ray.strategies import STRATEGIES
from lsat_ray.strategies.base import Plan, alone, full_retraining


class Breaks:
    """Full retraining whose adapter of period 3 can never be trained: its rank is not the model's."""

    name = "breaks"

    def __init__(self, setting):
        self.setting = setting

    def plan(self, t):
        spec = full_retraining(self.setting, t)
        return alone(replace(spec, lora=spec.lora.model_copy(update={"rank": 3}))) if t == 3 else alone(spec)


STRATEGIES["breaks"] = Breaks
'''


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_training_that_fails_for_good_leaves_the_last_models_served(tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text(RULES)
    (tmp_path / "tiny.yaml").write_text(CONFIG.replace("mf/fine-tuning", "breaks"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    sets = ["engine.kind=torch", "engine.on_failure=keep-last", "serve.port=18533"]
    for backend in ("local", "ray"):
        line = [sys.executable, "-m", "lsat_ray", "replay", "--config", "tiny.yaml", "--import", "rules.py"]
        line += ["--runs-dir", str(tmp_path), "--name", backend]
        line += [part for s in (*sets, f"engine.backend={backend}") for part in ("--set", s)]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "period 3: breaks keeps its models of period 2" in done.stdout
        ledger = tmp_path / backend / "ledger.jsonl"
        records = [json.loads(text) for text in ledger.read_text().splitlines()]
        (stale,) = [r for r in records if r["stage"] == "stale"]
        assert (stale["strategy"], stale["period"], stale["kept"]) == ("breaks", 3, 2)
        assert "lora of the spec and of the model differ (rank 3 against 2)" in stale["reason"]
        assert [r["period"] for r in records if r.get("stale") and r["stage"] == "score"] == [4]
        # In one process the reason names the error's type; all else is alike.
        ledger.write_text(ledger.read_text().replace(json.dumps(stale["reason"]), '"why"'))
    assert compare(tmp_path / "local", tmp_path / "ray") == "identical"
