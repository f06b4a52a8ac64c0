"""What a run found, in a few lines for a terminal."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from headpursuit.__main__ import main
from headpursuit.publish.found import SHOWN, summary, verdicts
from headpursuit.run.finished import Run


def test_the_summary_has_the_tables_numbers(made: Path):
    title, head, *lines = summary(Run(made))
    assert title == f"What {made} found, of mistral, llava-next:"
    assert head.split() == (
        ["experiment", "heads", "measure", "after", "/", "before", "random", "heads", "nats/token"]
    )
    rows = pd.read_csv(made / "tables/table2.csv").set_index(["measure", "method"])
    count, own = rows.loc["occurrences", "somp"], rows.loc["expected", "somp"]
    random = rows.loc["expected", "random"]
    assert count["flag"] == "baseline count below 30"  # so the next measure stands for rtp
    [line] = [line for line in lines if line.startswith("rtp ")]
    assert line.split()[1:5] == ["2", "times", "-1", "expected"]
    assert f"{own['value']:.2f} [{own['ci_low']:.2f}, {own['ci_high']:.2f}]" in line
    assert f"{random['value']:.2f} [{random['both_low']:.2f}, {random['both_high']:.2f}]" in line
    assert line.endswith(f"{own['nats_per_token']:+.2f}")


def test_the_summary_counts_verdicts_and_names_what_is_undecided(run: Path):
    table = pd.read_csv(run / "tables/claims.csv", dtype=str)
    tested = table["verdict"] != "untested"
    first = table.index[tested][0]
    table.loc[tested, "verdict"] = ["supported", *["undecided"] * (tested.sum() - 1)]
    table.to_csv(run / "tables/claims.csv", index=False)
    said = "\n".join(summary(Run(run)))
    claims = f"{table.loc[tested, 'claim'].nunique()} of the paper's 15 claims"
    counts = f"1 supported, 0 contradicted, {tested.sum() - 1} undecided"
    assert f"{tested.sum()} verdicts on {claims}: {counts}." in said
    for claim, experiment in table.loc[tested, ["claim", "experiment"]].drop(first).to_numpy():
        assert f"{claim} ({experiment})" in said


@pytest.mark.parametrize("first", ["weather", "another run's"])  # else the last named
def test_the_summary_stays_short_and_begins_with_the_first_table(first: str, run: Path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    names = [f"weather-{number}" for number in range(20)]
    config["experiments"] |= dict.fromkeys(names, config["experiments"]["rtp"])
    config["tables"]["weather"], config["publish"]["first"] = names, first
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    table = pd.read_csv(run / "tables/table2.csv", dtype=str)
    many = [table.assign(experiment=name) for name in names]
    pd.concat(many).to_csv(run / "tables/weather.csv", index=False)
    lines = list(summary(Run(run)))
    assert len(lines) == 15
    assert [line.split()[0] for line in lines[2 : 2 + SHOWN]] == names[:SHOWN]
    assert f"and {22 - SHOWN} more experiments in {run}/tables" in lines
    assert lines[-1].endswith(f"trace {run}/tables/weather.csv weather-0 somp 2 expected")


def test_a_ratio_that_says_little_is_shown_with_the_reason(run: Path):
    table = pd.read_csv(run / "tables/table2.csv", dtype=str)
    table.assign(flag="baseline is 0", value=None).to_csv(run / "tables/table2.csv", index=False)
    [line] = [line for line in summary(Run(run)) if line.startswith("rtp ")]
    assert "not defined" in line and line.endswith("baseline is 0")


def test_a_run_without_ratios_says_so(run: Path):
    for name in ("table2.csv", "figure1.csv", "claims.csv"):
        (run / "tables" / name).unlink()
    lines = list(summary(Run(run)))
    assert lines[0] == f"What {run} found: no ratios." and len(lines) == 2


def test_every_claim_has_its_verdict(made: Path):
    table, lines = pd.read_csv(made / "tables/claims.csv"), list(verdicts(Run(made)))
    for row in table.to_dict("records"):
        assert any(row["claim"] in line and row["says"] in line for line in lines)
        if row["verdict"] != "untested":
            weakest = f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}], 2 heads, alpha -1"
            assert any(
                line.startswith(f"  {row['verdict']}: {row['experiment']}, ") and weakest in line
                for line in lines
            )


def test_the_command_prints_both_or_the_short_part(run: Path, capsys):
    assert main(["claims", str(run)]) == 0
    both = capsys.readouterr().out.splitlines()
    assert main(["claims", str(run), "--short"]) == 0
    assert capsys.readouterr().out.splitlines() == both[: len(list(summary(Run(run))))]
    (run / "tables/claims.csv").unlink()
    assert main(["claims", str(run), "--short"]) == 0
    assert main(["claims", str(run)]) == 2
    assert "tables/claims.csv is not there" in capsys.readouterr().err
