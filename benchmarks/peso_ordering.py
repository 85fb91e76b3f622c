"""Put the tables of a finished run of PESO's blocks beside the order of rows that the paper reports.

    lsat-ray study --config jobs/configs/peso_video_games.yaml
    python benchmarks/peso_ordering.py runs/peso_video_games --out benchmarks/results

It copies the run's tables and config to `OUT/<name>/`, and writes there `ordering.csv` and `ordering.md`: for each pair
of rows that the paper orders, our difference of NDCG@5 (the paper's metric of these tables) with its paired interval
over users, and whether the two agree. The paper's tables are of other logs (Instruments; Llama-3.2-1B).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lsat_ray.errors import LsatError
from lsat_ray.evaluation.significance import ALPHA, holm, short
from lsat_ray.files import write_atomic
from lsat_ray.generative.study import paired

KEPT = ("table.csv", "groups.csv", "paired.csv", "config.resolved.yaml", "versions.json")
"""Files of the run that are copied."""
FIELD = "ndcg5"


class Claim(NamedTuple):
    """A pair of rows and what the paper says of it (methods.md 5f, reference notes)."""

    better: str
    worse: str
    source: str


MAIN, RETRAINED = "main table, Instruments", "comparison with retraining on all blocks"
NATURAL, ABLATION = "motivation table, natural split", "ablation of the penalty"
CLAIMS = (
    Claim("peso", "single-evolving", MAIN),
    Claim("peso", "sumlora-latest-inherit", MAIN),
    Claim("sumlora-latest-inherit", "single-evolving", MAIN),
    Claim("single-evolving", "full-retraining", RETRAINED),
    Claim("peso", "inf-lora", MAIN),
    Claim("single-evolving", "inf-lora", MAIN),
    Claim("sumlora-latest-inherit", "inf-lora", MAIN),
    Claim("o-lora", "inf-lora", MAIN),
    Claim("single-evolving", "sumlora-all", NATURAL),
    Claim("single-evolving", "sumlora-latest", NATURAL),
    Claim("sumlora-latest", "sumlora-all", NATURAL),
    Claim("sumlora-all-inherit", "single-evolving", NATURAL),
    Claim("sumlora-latest-inherit", "sumlora-all-inherit", NATURAL),
    Claim("sd-lora-latest-inherit", "single-evolving", NATURAL),
    Claim("peso", "peso-rank(2)", ABLATION),
    Claim("peso", "peso-output(2)", ABLATION),
    Claim("peso-rank(2)", "prox-l2(2)", ABLATION),
    Claim("peso-output(2)", "prox-l2(2)", ABLATION),
)
"""What the paper orders; a pair counts where the run has both rows."""
COLUMNS = ["better", "worse", "source", "beams", "difference", "low", "high", "p", "p_adjusted", "agreement"]


def ordering(values: pd.DataFrame, claims: tuple[Claim, ...] = CLAIMS) -> pd.DataFrame:
    """Return one line per claim and number of beams: our difference, better minus worse, and whether we agree.

    Args:
        values: `tests.parquet` of a run.
        claims: of the paper.

    Raises:
        LsatError: when the run has the rows of no claim.
    """
    rows = set(values["strategy"])
    out = []
    for claim in claims:
        if not {claim.better, claim.worse} <= rows:
            continue
        found = paired(values[values["strategy"].isin([claim.better, claim.worse])], claim.worse, FIELD)
        out += [[*claim, f.beams, f.difference, f.low, f.high, f.p] for f in found.itertuples()]
    if not out:
        raise LsatError(f"ordering: the run has no two rows that the paper orders, only {', '.join(sorted(rows))}")
    table = pd.DataFrame(out, columns=COLUMNS[:-2])
    table["p_adjusted"] = holm(table["p"].to_numpy(np.float64))
    return table.assign(
        agreement=[agreement(*r) for r in table[["difference", "low", "high", "p_adjusted"]].to_numpy()]
    )


def agreement(difference: float, low: float, high: float, p: float) -> str:
    """Say in words what a difference (in the paper's direction) says of the paper's order."""
    if difference == 0:
        return "equal"
    same = difference > 0
    if low <= 0 <= high or p >= ALPHA:
        return f"{'same' if same else 'opposite'} sign, not significant"
    return "agrees" if same else "contradicts"


def page(name: str, table: pd.DataFrame) -> str:
    """Return the comparison as Markdown."""
    counts = table["agreement"].value_counts()
    lines = [
        f"# {name}: the paper's order of rows beside ours",
        "",
        "Written by `benchmarks/peso_ordering.py` from the run's tests. Difference of NDCG@5, the row that the paper",
        "has in front minus the other, mean over blocks and seeds; 95 % interval by user; p from",
        "swapped users, after Holm. The paper's logs and backbone (Llama-3.2-1B) are others.",
        "",
        f"Of {len(table)} pairs: " + ", ".join(f"{n} {word}" for word, n in counts.items()) + ".",
        "",
        "| the paper has | above | in its | beams | our difference | p | agreement |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in table.to_dict("records"):
        difference, low, high = (short(float(r[k]), sign=True) for k in ("difference", "low", "high"))
        p = short(float(r["p_adjusted"]), 2)
        cells = [f"`{r['better']}`", f"`{r['worse']}`", r["source"], r["beams"], f"{difference} [{low}, {high}]", p]
        lines.append(f"| {' | '.join(map(str, cells))} | {r['agreement']} |")
    return "\n".join(lines) + "\n"


def publish(run: Path, out: Path) -> Path:
    """Copy a run's tables to its folder of results, and write the comparison beside them; return that folder.

    Raises:
        LsatError: when the run is not finished.
    """
    if missing := [name for name in (*KEPT, "tests.parquet") if not (run / name).is_file()]:
        raise LsatError(f"{run}: {missing[0]} is missing; run `lsat-ray study` on its config to the end")
    folder = out / run.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*KEPT, *(p.name for p in run.glob("penalties.csv"))):
        shutil.copyfile(run / name, folder / name)
    table = ordering(pd.read_parquet(run / "tests.parquet"))
    write_atomic(folder / "ordering.csv", table.to_csv(index=False, float_format="%.6f"))
    write_atomic(folder / "ordering.md", page(run.name, table))
    return folder


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of the blocks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where results lie")
    args = parser.parse_args()
    folder = publish(args.run, args.out)
    print((folder / "ordering.md").read_text())


if __name__ == "__main__":
    main()
