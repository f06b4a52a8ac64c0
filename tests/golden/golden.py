"""The golden run: the demo in small, in float32, whose values stay what they are.

    python tests/golden/golden.py          runs it and compares
    python tests/golden/golden.py --pin    runs it and writes what it finds

The values are those of one kind of processor: another one rounds otherwise, and a token that two
conditions tie on may differ there. Whoever changes the code compares before and after on one
machine.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEYS = ["part", "key", "column"]
# Responses are drawn in one run and greedy in the other; all else is the same.
SAMPLED = {"experiments": {"rtp": {"generation": {"temperature": 1.0}}}}
RUNS = {"greedy": {}, "sampled": {"run": "golden-sampled", **SAMPLED}}
EXACT = ("heads", "responses", "answers", "words", "tokens")


def run(name: str) -> Path:
    """Run the workflow and return its results' folder."""
    overlay = ROOT / f"results/{name}.golden.yaml"
    overlay.write_text(yaml.safe_dump({"run": "golden", **RUNS[name]}))
    files = ["configs/demo.yaml", "tests/golden/run.yaml", overlay]
    snakemake = Path(sys.executable).with_name("snakemake")
    command = [snakemake, "--cores", "2", "--quiet", "--configfile", *files]
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / "results" / RUNS[name].get("run", "golden")


def flat(part: str, table: pd.DataFrame, keys: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield part, key, column and value of every cell that is no key."""
    for row in table.to_dict("records"):
        key = " ".join(str(row.pop(name)) for name in keys)
        yield from ((part, key, column, str(value)) for column, value in row.items())


def found(results: Path) -> pd.DataFrame:
    """Return what the run made: a row for each value."""

    def csv(name: str) -> pd.DataFrame:
        return pd.read_csv(results / name, dtype=str, keep_default_na=False)

    rows: list[tuple[str, str, str, str]] = []
    # Intervals are reckoned from the same scores; tests/unit/test_statistics.py holds them.
    for name in ("table2", "figure1"):
        table = csv(f"tables/{name}.csv").filter(
            regex="^(?!published|samples|model|heads_from|ci_|both_)"
        )
        rows += flat(name, table, ["experiment", "method", "heads", "measure"])
    rows += flat("concepts", csv("tables/concepts.overlap.csv"), ["heads", "one", "other"])
    table1 = csv("tables/table1.csv").filter(regex="^(?!published|experiment)")
    keys = ["layer", "head", "method"]
    rows += flat("tokens", table1[[*keys, "tokens"]], keys)
    measured = table1[table1["method"] == "somp"].drop(columns="tokens")
    rows += flat("table1", measured, keys)
    rows += flat("words", csv("words/rtp.csv")[["rank", "count", "split"]], ["rank"])
    for experiment in ("rtp", "digits"):
        for file in ("selected", "random"):
            chosen = csv(f"heads/{experiment}/{file}.csv").groupby("condition")
            for name, own in chosen:
                listed = " ".join(
                    f"L{layer}.H{head}" for layer, head in own[["layer", "head"]].values
                )
                rows.append(("heads", f"{experiment} {name}", "heads", listed))
        for path in sorted((results / f"responses/{experiment}").rglob("*.parquet")):
            for row in pq.read_table(path).to_pylist():
                tokens = " ".join(map(str, row["token_ids"]))
                key = f"{row['condition']} {row['sample_id']}"
                said = row["response"] if experiment == "digits" else tokens
                rows.append(("responses", key, "said", said))
    return pd.DataFrame(rows, columns=[*KEYS, "value"])


def differences(pinned: pd.DataFrame, own: pd.DataFrame) -> list[str]:
    """Return what is not as it was; numbers may differ in the seventh digit."""
    both = pinned.merge(own, on=KEYS, how="left", suffixes=("_was", "_is"))
    lines = []
    for row in both.itertuples():
        was, now = row.value_was, row.value_is
        if now != now:
            lines.append(f"{row.part} {row.key} {row.column}: is gone")
        elif was != now and not (row.part not in EXACT and _close(was, now)):
            lines.append(f"{row.part} {row.key} {row.column}: {was!r} was, {now!r} is")
    return lines


def _close(was: str, now: str) -> bool:
    try:
        return abs(float(was) - float(now)) <= 1e-6 * max(abs(float(was)), 1e-3)
    except ValueError:
        return False


def main() -> None:
    """Run, and pin or compare."""
    failed = False
    for name in RUNS:
        own = found(run(name)).sort_values(KEYS)
        path = HERE / f"{name}.csv.gz"
        if "--pin" in sys.argv:
            own.to_csv(path, index=False, compression={"method": "gzip", "mtime": 0})
            continue
        pinned = pd.read_csv(path, dtype=str, keep_default_na=False)
        lines = differences(pinned, own)
        parts = pd.Series([line.split()[0] for line in lines]).value_counts().to_dict()
        print(f"{name}: {len(own)} values, {len(lines)} differ {parts or ''}")
        print("\n".join(line[:200] for line in lines[:40]))
        failed |= bool(lines)
    sys.exit(failed)


if __name__ == "__main__":
    main()
