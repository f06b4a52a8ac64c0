"""The report's first page: its numbers are the tables', and measures that disagree are told."""

import pandas as pd
import pytest
from headpursuit.publish.answer import disagreements, headline, numbers, verdicts
from headpursuit.publish.claims import display
from headpursuit.run.tables import read_csv


@pytest.fixture(scope="module")
def table(made):
    return read_csv(made / "tables/table2.csv")


def test_three_numbers_are_those_of_the_table(made, table):
    claims = read_csv(made / "tables/claims.csv")
    found = list(numbers(table, read_csv(made / "tables/table2.tests.csv"), claims))
    assert [text.split(",")[0].split(" (")[0] for text, _ in found[:3]] == [
        "2 heads by SOMP",
        "as many random heads of the same layers",
        "the former over the latter",
    ]
    rows = headline(table).set_index("method")
    somp, random = rows.loc["somp"], rows.loc["random"]
    assert found[0][1] == f"{somp.value:.2f} [{somp.ci_low:.2f}, {somp.ci_high:.2f}]"
    assert found[1][1] == f"{random.value:.2f} [{random.both_low:.2f}, {random.both_high:.2f}]"
    own = claims[claims["verdict"].eq("undecided") & claims["measure"].eq("expected")]
    assert found[3:] == own[["says", "verdict"]].to_numpy().tolist() != []
    ratio = float(found[2][1].split()[0])
    assert ratio == pytest.approx(somp.value / random.value, abs=0.006)


def test_the_measure_is_the_first_that_has_enough(table):
    first = table["measure"].iloc[0]
    assert table["flag"].notna().any() and set(headline(table)["measure"]) != {first}
    sound = table.assign(flag=None)
    assert set(headline(sound)["measure"]) == {first}
    more = pd.concat([sound, sound.assign(heads=4)])
    assert set(headline(more)["heads"]) == {4}


def test_decided_claims_come_first(made):
    claims = read_csv(made / "tables/claims.csv")
    decided = claims.copy()
    decided.loc[decided.index[decided["verdict"] == "undecided"][-1], "verdict"] = "supported"
    said, shown = verdicts(decided, display(decided, 0.95))
    assert ": 1 supported, 0 contradicted, " in said and "untested" not in shown["verdict"]
    assert shown["verdict"].iloc[0] == "supported"
    assert set(shown["verdict"].iloc[1:]) == {"undecided"}


def test_measures_whose_intervals_are_apart_are_told(table):
    ends = {"ci_low": 0.9, "ci_high": 1.1, "both_low": None, "both_high": None}
    alike = table.assign(**ends, value=1.0)
    assert not list(disagreements(alike))
    apart = (alike["method"] == "somp") & (alike["measure"] == "expected")
    alike.loc[apart, ["value", "ci_low", "ci_high"]] = 0.5, 0.4, 0.6
    (said,) = disagreements(alike)
    assert "rtp, 2 heads by SOMP, alpha -1: occurrences 1.00 [0.90, 1.10], expected 0.50" in said
    assert "random" not in said
