"""The results page says what the kept JSON says: verdicts, doubts, what is missing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import course, page
from benchmarks.all import WORKLOADS
from benchmarks.harness import Row, Run
from benchmarks.load import Load
from benchmarks.page_reasons import WHY_MISSED
from benchmarks.page_results import contenders, doubts, kept, parts, read, targets
from benchmarks.report import environment, plain, settings, summary

CALM = {"machine": "x86_64, 2 cores, a processor, Linux", "load_average": 0.4, "date": "2026-01-01"}
ROW = Row("10ms", Load(100, 10), {}, "asyncpar", "floor", 0.9, {}, rivals=frozenset({"rival"}))


def runs(*rates: float, faults: tuple[str, ...] = (), is_stopped: bool = False) -> list[Run]:
    return [Run(100, 100 / rate, 1.0, faults=list(faults), is_stopped=is_stopped) for rate in rates]


def section(row: Row = ROW, **results: list[Run]) -> dict[str, Any]:
    """What `harness.conduct` writes of a row."""
    return {
        "settings": settings(row, 3),
        "runs": plain(results),
        "result": json.loads(json.dumps(summary(row, results))),
    }


def found(load_average: float = 0.4, **rows: Any) -> dict[str, Any]:
    return {"environment": CALM | {"load_average": load_average}, "rows": rows}


def right(*rates: float) -> dict[str, Any]:
    return section(asyncpar=runs(*rates), floor=runs(*(100.0 for _ in rates)))


def told(text: str, workload: str) -> str:
    """What a page says below a workload's heading."""
    return text.partition(f"\n## {workload}\n")[2].partition("\n## ")[0]


# -- the page ------------------------------------------------------------------------------------


def test_the_page_has_every_workload():
    """The table in the benchmarks' README, which the page goes by, names what `all.py` runs."""
    found = {one.name: one for one in page.workloads()}
    assert found.keys() == set(WORKLOADS)
    assert found["p3"].against == found["p2"].against == "a floor without Kafka, rivals"


def test_without_results_the_page_says_so():
    """Of each workload, and there is no plot."""
    made = page.files({})
    assert list(made) == ["benchmarks.md"]
    for one in page.workloads():
        assert f"| {one.target} | no results yet | - |" in made["benchmarks.md"]
    assert made["benchmarks.md"].count("There are no results yet.") == len(page.workloads()) + 1


def test_figures_that_may_be_quoted_are_not_marked():
    """Three rounds on a calm machine."""
    one = found(**{"10ms": right(95.0, 96.0, 97.0)})
    assert doubts(one) == []
    made = page.files({"p2": one})["benchmarks.md"]
    assert "| met, all 1 | yes |" in made
    assert "### P2, 10 ms\n" in made
    assert "Not to be quoted" not in made


@pytest.mark.parametrize(
    ("rates", "load_average", "doubt"),
    [
        ((95.0, 95.0), 0.4, "only 2 rounds"),
        ((95.0, 95.0, 95.0), 2.1, "a load average of 2.1 on 2 cores"),
    ],
)
def test_figures_that_prove_little_are_marked(rates, load_average, doubt):
    """Few rounds, or a machine that had other work: where the figures stand, and in the table of all."""
    made = page.files({"p2": found(load_average, **{"10ms": right(*rates)})})["benchmarks.md"]
    assert f"**Not to be quoted**: {doubt}" in told(made, "P2")
    assert "| met, all 1 | no |" in made


def test_a_missed_target_has_its_reason():
    """And one that is met needs none; every reason is of a workload that there is."""
    missed, met = (page.files({"p2": found(**{"10ms": right(rate, rate, rate)})}) for rate in (50.0, 95.0))
    assert WHY_MISSED["p2"] in told(missed["benchmarks.md"], "P2")
    assert "Why not all is met" not in told(met["benchmarks.md"], "P2")
    assert WHY_MISSED.keys() <= {one.name for one in page.workloads()}


def test_the_same_results_give_the_same_files():
    """And they change with a figure, so that the check of the generated pages sees it."""
    one, other = found(**{"10ms": right(95.0, 96.0)}), found(**{"10ms": right(95.0, 96.5)})
    assert page.files({"p2": one}) == page.files({"p2": kept(json.loads(json.dumps(one)))})
    assert page.files({"p2": one})["benchmarks.md"] != page.files({"p2": other})["benchmarks.md"]


def test_the_page_says_with_what_a_workload_was_measured(tmp_path: Path):
    """Date, machine, load, versions and broker, from what the course of a workload writes."""
    path = tmp_path / "p6.json"
    options = course.parser("").parse_args(["--bootstrap-servers", "host:1", "--json", str(path)])
    bound = {"targets": {"share": course.at_most(0.01, 0.0)}}
    made = course.Course({}, lambda address: {"asyncpar": [course.Measured()] * 3}, lambda runs: bound)
    assert course.conduct(options, made) == 0
    around = environment()
    cells = (around[key] for key in ("date", "machine"))
    row = told(page.files({"p6": read(path)})["benchmarks.md"], "Machine and versions")
    assert "| P6 | {} | {} | ".format(*cells) in row
    assert f"| {around['python']} | {around['asyncpar']} | {around['aiokafka']} | the one at host:1 |" in row


# -- verdicts ------------------------------------------------------------------------------------


def verdicts(one: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(target.what, target.measured, target.verdict) for part in parts(one) for target in targets(part)]


def test_each_loop_is_judged_beside_its_own_floor():
    """The subject beside the baseline, and the same on uvloop beside that on uvloop."""
    names = {"asyncpar uvloop": runs(150.0), "floor uvloop": runs(200.0)}
    one = section(asyncpar=runs(90.0), floor=runs(100.0), **names)
    assert verdicts(one) == [
        ("asyncpar of floor", "0.900", "met"),
        ("asyncpar uvloop of floor uvloop", "0.750", "missed"),
    ]


def test_a_ratio_is_the_median_of_those_in_the_same_round():
    """As the benchmark reckons it: rounds in which both were slow do not count against one of them."""
    one = section(asyncpar=runs(90.0, 35.0, 80.0), floor=runs(100.0, 50.0, 100.0))
    (ours,) = [each for each in contenders(parts(one)[0]) if each.of]
    assert ours.ratio == pytest.approx(one["result"]["ratio"]) == pytest.approx(0.8)
    assert ours.ratio_spread == pytest.approx((0.7, 0.9))


def test_what_lost_records_has_no_valid_verdict():
    """Whatever its rate."""
    one = section(asyncpar=runs(100.0, faults=("1 records are missing",)), floor=runs(100.0))
    assert verdicts(one) == [("asyncpar of floor", "1.000", "not valid")]
    made = page.files({"s2": {"environment": CALM, **one}})["benchmarks.md"]
    assert "| wrong; 1 records are missing |" in told(made, "S2")


def test_rivals_have_a_target_and_it_is_said_when_nobody_can_reach_it():
    """How many times faster asyncpar is, what was wanted, and what is possible where that is less."""
    times = {"rival": {"times": 3.0, "wanted": 4, "possible": 3.5}, "slow": {"times": 9.0, "wanted": 4}}
    row = replace(ROW, target=None, figures=lambda results: {"times_rivals": times})
    assert verdicts(section(row, asyncpar=runs(90.0), floor=runs(100.0))) == [
        ("asyncpar of rival", "3 times (nobody can pass 3.5)", "missed"),
        ("asyncpar of slow", "9 times", "met"),
    ]


def test_bounds_have_the_verdict_that_was_measured():
    """The targets of workloads without rates are taken as they are."""
    bounds = {"a": {"at_most": 1, "measured": 2, "is_met": False}}
    bounds |= {"b": {"at_least": 0.5, "measured": 0.7, "is_met": True}}
    one = {"environment": CALM, "settings": {}, "runs": {}, "result": {"targets": bounds, "faults": {}}}
    assert verdicts(one) == [("a", "2", "missed"), ("b", "0.7", "met")]
    assert "| missed: 1 of 2 | no |" in page.files({"p8": one})["benchmarks.md"]


# -- keeping -------------------------------------------------------------------------------------


def test_what_is_kept_is_small_and_enough():
    """Samples go and digits that mean nothing; the page of it is the same."""
    one = found(**{"10ms": right(95.123456789, 96.0)})
    run = one["rows"]["10ms"]["runs"]["asyncpar"][0]
    run["rss_mb"] = list(range(50))
    run["faults"] = [f"fault {number}" for number in range(9)]
    slim = kept(one)["rows"]["10ms"]["runs"]["asyncpar"][0]
    assert "rss_mb" not in slim and len(slim["faults"]) == 5
    assert slim["rate"] == 95.1235
    assert len(run["rss_mb"]) == 50


def test_keeping_and_reading_gives_it_back(tmp_path: Path):
    """By the workload's name; what is not of a workload is refused, and nothing of the rest is kept."""
    given, folder = tmp_path / "given", tmp_path / "kept"
    given.mkdir()
    for name in "p2", "other":
        (given / f"{name}.json").write_text(json.dumps(found(**{"10ms": right(95.0)})))
    with pytest.raises(ValueError, match="no workload 'other'; there are p1, "):
        page.keep([given / "p2.json", given / "other.json"], folder)
    assert not folder.exists()
    page.keep([given / "p2.json"], folder)
    assert page.results(folder) == {"p2": kept(read(given / "p2.json"))}


@pytest.mark.parametrize("text", ["{", "[]", '{"environment": {}, "rows": {}}', '{"rows": {"a": {}}}'])
def test_a_file_that_is_no_result_is_named(text, tmp_path: Path):
    """With what to do about it."""
    path = tmp_path / "p2.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"p2\.json: not the JSON of a benchmark .*; measure it again"):
        read(path)


def test_results_that_are_not_there_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command ends with code 2 and one line."""
    assert page.main([str(tmp_path / "*.json")]) == 2
    assert "no such file; `make bench WORKLOAD=all` writes them" in capsys.readouterr().err


def test_plots_without_figures_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Written where the docs are; one of a result that is no more is removed."""
    monkeypatch.setattr(page, "results", lambda: {"p2": found(**{"10ms": right(95.0)})})
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "p3.svg").write_text("an old one")
    page.write(tmp_path)
    assert [path.name for path in (tmp_path / "benchmarks").iterdir()] == ["p2.svg"]
    assert "(benchmarks/p2.svg)" in (tmp_path / "benchmarks.md").read_text()
