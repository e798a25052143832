"""The frontier: what it plans, what a run measures, what its page says of what is there."""

import dataclasses
import json
import math
from xml.etree import ElementTree as ET

import pytest
import torch

from benchmarks import frontier
from benchmarks.budget_run import Judge, Pace, Task, prepared_for, run
from benchmarks.contenders import FULL, MAIN, SIDE, Contender
from benchmarks.frontier_jobs import do, open_cache
from benchmarks.frontier_page import data_set, write_frontier
from benchmarks.frontier_plan import MOST_RATES, Cache, Job, Settings, missing
from benchmarks.measure import Gauge, mean_text, write_page
from benchmarks.plot import line_plot
from core.carbon.sources import Reading

GREEN = MAIN[1]
TRAINER = next(c for c in SIDE if c.label == "trainer full")
SWEEP = 0.5


@pytest.fixture(scope="module")
def data(tmp_path_factory, chat_lines):
    folder = tmp_path_factory.mktemp("sums")
    (folder / "train.jsonl").write_bytes(chat_lines(40))
    (folder / "validation.jsonl").write_bytes(chat_lines(8))
    return folder


@pytest.fixture(scope="module")
def task(data, tiny_model):
    return Task(model=str(tiny_model), data=data, batch_size=4, n_questions=0)


@pytest.fixture
def cache(tmp_path):
    settings = Settings(
        data="sums", digest="0", model="tiny", machine="one", reference_steps=10,
        batch_size=4, n_validation=8, n_questions=0,
    )  # fmt: skip
    folder = tmp_path / "runs" / "0"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)))
    return Cache(folder, settings)


def _write(cache, job, loss=1.0, **values):
    if job.budget is None:
        found = {"step_s": 2.0, "selection_s": 0.0, **values}
    else:
        found = {
            "label": job.contender.label, "budget": job.budget, "rate": job.rate, "seed": job.seed,
            "validation_loss": loss, "first_validation_loss": None, "n_train": 40, "n_steps": 5,
            "seconds": 10 * job.budget, "cpu_s": 1.0, "energy_j": 7.0, "joules": {"cpu rapl": 7.0},
            "flops": 2.0, "full_flops": 4.0, "selection_flops": 0.5, "peak_bytes": 10**9,
            "load": [0.5, None], "wanted_cores": 2, "precision": "float32", "torch": "2",
            "transformers": "5", **values,
        }  # fmt: skip
    cache.file(job).write_text(json.dumps(found))


def _plan(cache, contenders, budgets=(SWEEP, 1.0), seeds=(0, 1), sweeps=(SWEEP,)):
    return missing(cache, contenders, budgets=budgets, sweep_budgets=sweeps, seeds=seeds)


def _work_off(cache, contenders, losses, **plan):
    """Do every planned job by writing ``losses(job)``; the jobs in their order."""
    done = []
    while jobs := _plan(cache, contenders, **plan):
        assert jobs[0].budget is None or jobs[0].rate is not None, "it could not be run"
        _write(cache, jobs[0], 0.0 if jobs[0].rate is None else losses(jobs[0]))
        done.append(jobs[0])
        assert len(done) < 100
    return done


def test_every_budget_and_seed_is_run_once_at_the_sweeps_best_rate(cache):
    best = {FULL: FULL.rates()[1], GREEN: GREEN.rates()[1]}
    done = _work_off(cache, [FULL, GREEN], lambda job: float(job.rate != best[job.contender]))

    assert len(done) == len(set(done))
    assert done[:2] == [Job(contender=FULL), Job(contender=GREEN)]
    for contender in (FULL, GREEN):
        runs = [job for job in done if job.contender == contender and job.budget is not None]
        assert runs[:3] == cache.sweep(contender, SWEEP)
        # the sweep's winner at its budget and seed is a cell already
        cells = {(job.budget, job.seed) for job in runs[3:]}
        assert cells == {(SWEEP, 1), (1.0, 0), (1.0, 1)}
        assert {job.rate for job in runs[3:]} == {best[contender]}


def test_a_budget_takes_its_rate_from_the_last_sweep_that_is_not_beyond_it(cache):
    low, middle, _ = FULL.rates()
    late = 0.8

    def losses(job):
        return abs(math.log(job.rate / (middle if job.budget < late else low)))

    budgets = (0.2, SWEEP, 0.7, late, 1.0)
    done = _work_off(cache, [FULL], losses, budgets=budgets, sweeps=(SWEEP, late))

    rates = {job.budget: job.rate for job in done if job.seed == 1}
    assert rates == {0.2: middle, SWEEP: middle, 0.7: middle, late: low, 1.0: low}
    swept = {(job.budget, job.rate) for job in done if job.seed == 0}
    assert {(late, low), (late, middle), (SWEEP, low)} <= swept


def test_a_sweep_begins_at_the_rates_of_the_model_that_was_calibrated(cache):
    _write(cache, Job(contender=FULL), weight_scale=0.13)
    swept = [job.rate for job in cache.sweep(FULL, SWEEP)]
    assert swept == pytest.approx([0.13 * rate for rate in FULL.rates()], rel=1e-2)


def test_plans_as_many_runs_before_as_after_sweeps_that_need_not_go_on(cache):
    before = _plan(cache, [FULL, GREEN])
    done = _work_off(cache, [FULL, GREEN], lambda job: abs(job.rate - job.contender.rule))
    assert len(before) == len(done)


@pytest.mark.parametrize("best", [2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4])
def test_a_sweep_goes_on_until_the_best_rate_has_neighbours(cache, best):
    done = _work_off(cache, [FULL], lambda job: abs(math.log(job.rate / best)))
    assert cache.best_rate(FULL, SWEEP, (SWEEP,)) == pytest.approx(best)
    rates = sorted({job.rate for job in done if (job.budget, job.seed) == (SWEEP, 0)})
    assert rates[0] < best < rates[-1]


def test_a_sweep_ends_even_where_every_higher_rate_is_better(cache):
    done = _work_off(cache, [FULL], lambda job: -job.rate)
    assert len({job.rate for job in done if job.rate is not None}) == MOST_RATES


def test_a_contender_that_is_not_feasible_is_dropped_and_named(cache, tmp_path):
    _write(cache, Job(contender=GREEN), rho_min=0.75)
    jobs = _work_off(cache, [FULL, GREEN], lambda _job: 1.0)
    assert {job.contender for job in jobs} == {FULL}
    write_frontier(tmp_path / "runs", tmp_path / "page.md", sweep_budgets=(SWEEP,))
    assert "| green 0.7 | not feasible, lowest rho 0.750 |" in (tmp_path / "page.md").read_text()


def test_a_budget_is_spent_on_selection_and_steps():
    pace = Pace(step_s=2.0, selection_s=1.0)
    assert pace.steps_within(9.0) == 4
    assert pace.steps_within(8.9) == 3
    assert pace.steps_within(0.1) == 1


def test_the_page_names_the_winner_of_each_budget_and_what_is_missing(cache, tmp_path):
    losses = {
        (FULL, 0.5): 3.0, (FULL, 0.9): 2.05, (FULL, 1.0): 2.0,
        (GREEN, 0.5): 2.5, (GREEN, 0.9): 2.02, (GREEN, 1.0): 2.2,
    }  # fmt: skip
    for contender in (FULL, GREEN):
        _write(cache, Job(contender=contender))
        for job in cache.sweep(contender, SWEEP):
            _write(cache, job, losses[contender, SWEEP] + (job.rate != contender.rates()[1]))
        for budget in (0.9, 1.0):
            for seed, off in ((0, -0.05), (1, 0.05)):
                job = Job(contender=contender, budget=budget, rate=contender.rates()[1], seed=seed)
                _write(cache, job, losses[contender, budget] + off)
    _write(cache, Job(contender=FULL, budget=0.2, rate=FULL.rates()[1]), 3.5)
    _write(cache, Job(contender=FULL, budget=0.7, rate=FULL.rates()[1]), 2.1)

    write_frontier(tmp_path / "runs", tmp_path / "page.md", sweep_budgets=(SWEEP,))
    page = (tmp_path / "page.md").read_text()

    assert (
        "| 0.5 | green 0.7 | 2.500 in 5.0 s | full | 3.000 in 5.0 s | -0.500 | one seed | green |"
        in page
    )
    assert "| 0.2 | missing |  | full |" in page
    # nobody must spend all that it may
    assert "| 0.7 | green 0.7 | 2.500 in 5.0 s | full | 2.100 in 7.0 s | +0.400 |" in page
    assert "| 1 | green 0.7 | 2.020 in 9.0 ± 0.0 s | full | 2.000 in 10.0 ± 0.0 s |" in page
    assert "| +0.020 | 0.100 | alternative, within the spread |" in page
    assert "| -0.030 | 0.100 | green, within the spread |" in page
    assert "Full fine-tuning is best at budget 1, 2.000; green does not reach that" in page
    assert "| green 0.7 | missing | 2.500 | missing | 2.020 ± 0.071 | 2.200 ± 0.071 |" in page
    assert "did other work" not in page


def test_seconds_of_a_loaded_machine_are_disowned(cache, tmp_path):
    _write(cache, Job(contender=FULL))
    for job in cache.sweep(FULL, SWEEP):
        _write(cache, job, abs(job.rate - FULL.rule), load=[0.5, 6.2])
    (text,) = [part for part in data_set(cache, tmp_path / "page.md", sweep_budgets=(SWEEP,))
               if "other work" in part]  # fmt: skip
    assert "load up to 6.2" in text
    assert "seconds say nothing" in text


def test_a_page_without_runs_says_so(tmp_path):
    write_frontier(tmp_path / "none", tmp_path / "page.md", sweep_budgets=(SWEEP,))
    assert "No runs yet." in (tmp_path / "page.md").read_text()


def test_what_was_written_by_hand_stays_under_a_new_page(tmp_path):
    page = tmp_path / "page.md"
    write_page(page, "# Old\n\n## Read\n")
    page.write_text(page.read_text() + "\n## Reading\n\nOurs.\n\n## Earlier\n\nToo.\n")
    for text in ("# New", "# Newer\n"):
        write_page(page, text)
    assert page.read_text() == "# Newer\n\n## Reading\n\nOurs.\n\n## Earlier\n\nToo.\n"


class _Ticks:
    """An energy source that has one joule more at every reading."""

    devices = frozenset({"cpu"})

    def __init__(self):
        self.n_readings = 0

    def open(self): ...
    def poll(self): ...
    def close(self): ...

    def read(self):
        self.n_readings += 1
        return (Reading(device="cpu", energy_j=1.0, method="rapl"),)


def test_a_gauge_counts_its_stretches_and_nothing_between():
    source = _Ticks()
    with Gauge(sources=[source]) as gauge:
        gauge.resume()
        gauge.pause()
        after_one = dict(gauge.joules)
        seconds = gauge.wall_s
        gauge.pause()  # counts nothing twice
        assert gauge.joules == after_one
        assert gauge.wall_s == seconds
        gauge.resume()
        gauge.pause()
    # each stretch ends with a reading; those that begin a stretch, and the last one, do not count
    assert set(gauge.joules) == {"cpu rapl"}
    assert after_one["cpu rapl"] >= 1.0
    assert gauge.energy_j > after_one["cpu rapl"]
    assert source.n_readings - gauge.energy_j >= 3
    assert gauge.wall_s > seconds
    assert gauge.peak_bytes > 0


def test_the_judge_keeps_the_best_weights(task, tmp_path):
    prepared = prepared_for(task, FULL, n_steps=4, rate=None, seed=0)
    model = prepared.loaded.model
    with Gauge(sources=()) as gauge:
        judge = Judge(model, prepared, gauge, n_steps=4, folder=tmp_path)
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        gauge.resume()
        for step in range(1, 5):
            if step > 3:
                with torch.no_grad():
                    model.get_output_embeddings().weight.mul_(50.0)
            judge.after_step(step)
        assert [mark["step"] for mark in judge.marks] == [3, 4]
        best = judge.restore_best()
    assert judge.best_step == 3
    assert best == judge.marks[0]["loss"] < judge.marks[1]["loss"]
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    assert judge.loss() == pytest.approx(best)


@pytest.fixture(scope="module")
def results(task):
    return {
        contender.label: run(task, contender, n_steps=12, budget_s=1.0, rate=1e-2, seed=0)
        for contender in (FULL, TRAINER, GREEN)
    }


def test_both_engines_train_the_same_on_the_same_batches(results):
    ours, theirs = results["full"], results["trainer full"]
    learnt = ours["first_validation_loss"] - ours["validation_loss"]
    assert learnt > 1
    assert abs(ours["validation_loss"] - theirs["validation_loss"]) < 0.1 * learnt
    # logits at every position, against those of the answers
    assert theirs["flops"] > ours["flops"]
    assert theirs["full_flops"] == pytest.approx(ours["full_flops"])


def test_a_run_says_what_it_spent(results):
    for found in results.values():
        assert json.loads(json.dumps(found)) == found
        assert found["seconds"] > 0
        assert found["peak_bytes"] > 0
        assert [mark["step"] for mark in found["marks"]] == [9, 12]
        seconds = [mark["seconds"] for mark in found["marks"]]
        assert seconds == sorted(seconds)
        assert found["validation_loss"] == min(mark["loss"] for mark in found["marks"])
    assert results["green 0.7"]["selection_flops"] > 0
    assert results["green 0.7"]["flops"] < results["full"]["flops"]


def _sweep(cache, model):
    """Full fine-tuning at three rates: the middle one run here, the others worse; its row."""
    lowest, best, highest = cache.sweep(FULL, 1.0)
    do(cache, best, model=str(model))
    found = cache.found(best)
    for worse in (lowest, highest):
        row = {**found, "rate": worse.rate, "validation_loss": found["validation_loss"] + 1}
        cache.file(worse).write_text(json.dumps(row))
    return found


def test_end_to_end_one_process_a_run_and_what_is_there_is_not_run_again(
    data, tiny_model, tmp_path, capsys
):
    words = [
        "--data", str(data), "--model", str(tiny_model), "--runs", str(tmp_path / "runs"),
        "--out", str(tmp_path / "page.md"), "--reference-steps", "6", "--validation", "8",
        "--questions", "2", "--budgets", "1", "--sweep-budgets", "1", "--only", "full",
    ]  # fmt: skip
    assert frontier.main([*words, "--plan"]) == 0
    planned = capsys.readouterr().out
    assert "calibrate full" in planned
    assert "4 runs, about" in planned
    assert not list((tmp_path / "runs").glob("*/*full*.json"))

    assert frontier.main([*words, "--at-most", "1"]) == 0  # a process of its own
    cache = open_cache(
        tmp_path / "runs", data, model=str(tiny_model), reference_steps=6, batch_size=4,
        n_validation=8, n_questions=2,
    )  # fmt: skip
    assert cache.pace(FULL) is not None
    _sweep(cache, tiny_model)
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in cache.folder.glob("*full*.json")}
    assert len(before) == 4
    assert frontier.main(words) == 0
    assert {p: p.stat().st_mtime_ns for p in cache.folder.glob("*full*.json")} == before
    page = (tmp_path / "page.md").read_text()
    assert "ROUGE-L" in page
    assert "| full | 1 | 1 |" in page
    plots = list(tmp_path.glob("page-*.svg"))
    assert len(plots) == 2
    assert all(plot.name in page for plot in plots)


def test_budgets_may_be_seconds_of_another_machine(data, tiny_model, tmp_path):
    paces = tmp_path / "paces"
    paces.mkdir()
    pace = {"step_s": 3.0, "selection_s": 1.0, "machine": "a slow one"}
    (paces / "calibration-full.json").write_text(json.dumps(pace))
    words = [
        "--data", str(data), "--model", str(tiny_model), "--runs", str(tmp_path / "runs"),
        "--out", str(tmp_path / "page.md"), "--reference-steps", "2", "--validation", "8",
        "--questions", "0", "--budgets", "1", "--sweep-budgets", "1", "--only", "full",
        "--paces", str(paces), "--jobs", "2",
    ]  # fmt: skip
    assert frontier.main([*words, "--at-most", "2"]) == 0  # processes of their own
    cache = open_cache(
        tmp_path / "runs", data, model=str(tiny_model), reference_steps=2, batch_size=4,
        n_validation=8, n_questions=0, paces=paces,
    )  # fmt: skip
    rows = [json.loads(path.read_text()) for path in cache.folder.glob("full-*.json")]
    assert len(rows) == 2
    rows.append(_sweep(cache, tiny_model))
    # 6 seconds there: one selection and a step
    assert {(row["n_steps"], row["paced_s"]) for row in rows} == {(1, 4.0)}
    assert frontier.main(words) == 0
    page = (tmp_path / "page.md").read_text()
    assert "Seconds are those of a slow one" in page


def test_an_unknown_contender_is_refused(capsys):
    with pytest.raises(SystemExit):
        frontier.main(["--only", "fulll"])
    assert "no contender 'fulll'; there are: full," in capsys.readouterr().err


def test_labels_tell_contenders_apart():
    everybody = [*MAIN, *SIDE, Contender(method="green", rho="efficient")]
    assert len({c.label for c in everybody}) == len(everybody)
    assert everybody[-1].label == "green efficient"


def test_a_plot_shows_every_point_inside_its_plane():
    series = {"a<b": [(3.0, 1.0), (1.0, 2.0)], "one": [(2.0, -5.0)], "none": []}
    root = ET.fromstring(line_plot(series, x_label="s", y_label="loss"))
    tag = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{tag}circle")
    assert len(circles) == 3
    texts = [element.text for element in root.findall(f"{tag}text")]
    assert "a<b" in texts
    assert "none" not in texts
    places = [(float(c.get("cx")), float(c.get("cy"))) for c in circles]
    # to the right is more, and up is more
    assert places[0][0] < places[2][0] < places[1][0]
    assert places[0][1] < places[1][1] < places[2][1]


def test_means_show_a_deviation_only_where_there_is_one():
    assert mean_text([], "x", ".1f") == ""
    assert mean_text([{"x": 1}], "x", ".1f") == "1.0"
    assert mean_text([{"x": 1}, {"x": 3}], "x", ".1f") == "2.0 ± 1.4"
