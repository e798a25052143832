"""`greentune run`: killed, stopped and continued, it ends with the same bits."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures.serving import environment_of

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny_model, chat_lines):
    """Starts `greentune run` on a small job, always the same, into a folder of its own."""
    base = tmp_path_factory.mktemp("local")
    train, validation = base / "train.jsonl", base / "validation.jsonl"
    train.write_bytes(chat_lines(40))
    validation.write_bytes(chat_lines(4))
    options = ["--model", tiny_model, "--validation", validation, "--rho", "0.7", "--zone", "FR"]
    options += ["--epochs", "12", "--learning-rate", "1e-3", "--checkpoint-every-s", "0.001"]
    options += ["--seed", "5"]
    options += ["--eval-metrics", "rougeL", "--eval-examples", "2", "--eval-new-tokens", "4"]

    def start(out, *more):
        command = [sys.executable, "-m", "worker", "run", train, "--out", base / out]
        return base / out, subprocess.Popen(
            [str(part) for part in (*command, *options, *more)],
            cwd=ROOT,
            env=environment_of(base / "home", meter_interval_s="0.2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def straight(job):
    out, process = job("straight")
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, text
    return out


def _wait_for_steps(out, n_steps, process):
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        metrics = out / "metrics.csv"
        if metrics.exists() and len(metrics.read_text().splitlines()) > n_steps:
            return
        time.sleep(0.02)
    pytest.fail(f"no step {n_steps}: {process.communicate()[0] if process.poll() else 'too slow'}")


def _weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def _trained(out):
    with (out / "metrics.csv").open() as file:
        return [(r["step"], r["train_loss"], r["flops_share"]) for r in csv.DictReader(file)]


def test_a_job_leaves_model_metrics_and_report(straight):
    report = json.loads((straight / "emissions.json").read_text())
    assert report["zone"] == "FR"
    assert report["energy_wh"]["total"] > 0
    assert report["co2e_g"] > 0
    assert report["baseline"]["energy_wh"] > report["energy_wh"]["total"]
    assert report["baseline"]["basis"] == "modelled"
    assert report["attribution"]["scope"] == "machine"
    overheads = {line["name"]: line["energy_wh"] for line in report["overheads"]}
    assert overheads.keys() == {
        *("preparation", "selection", "validation", "evaluation", "checkpoint", "delivery"),
    }
    assert 0 < sum(overheads.values()) < report["energy_wh"]["total"]
    assert report["sci"]["g_per_1k_trained_tokens"] > 0
    kept = (straight / "overheads.jsonl").read_text().splitlines()
    assert len(kept) > len(overheads)
    rows = _trained(straight)
    assert [int(step) for step, *_ in rows] == list(range(121))
    assert float(rows[-1][1]) < float(rows[1][1])
    assert "co2_eq_emissions" in (straight / "model" / "README.md").read_text()


def test_grams_stand_beside_what_they_bought(straight):
    quality = json.loads((straight / "emissions.json").read_text())["quality"]
    with (straight / "metrics.csv").open() as file:
        losses = [float(r["valid_loss"]) for r in csv.DictReader(file) if r["valid_loss"]]
    assert quality["validation_loss"] == {"before": losses[0], "after": losses[-1]}
    evaluation = json.loads((straight / "evaluation.json").read_text())
    assert quality["scores"] == {at: evaluation[at]["scores"] for at in ("before", "after")}


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_stopped_and_continued_it_ends_with_the_same_bits(job, straight, number, status):
    name = f"stopped-{number}"
    out, process = job(name)
    _wait_for_steps(out, 30, process)
    process.send_signal(number)
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status, text
    assert not (out / "model").exists()

    out, process = job(name)
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, text
    assert "Continuing after step" in text
    assert _weights(out) == _weights(straight)
    assert _trained(out) == _trained(straight)
    energy = (out / "energy.jsonl").read_text().splitlines()
    assert {json.loads(line)["attempt"] for line in energy} == {1, 2}
    report = json.loads((out / "emissions.json").read_text())
    # a killed attempt cannot say when or how it ended
    outcomes = [None if number is signal.SIGKILL else "paused", "succeeded"]
    assert [attempt["reason"] for attempt in report["attempts"]] == outcomes
    assert sum(attempt["energy_wh"] for attempt in report["attempts"]) == pytest.approx(
        report["energy_wh"]["total"] - report["energy_wh"]["pue"], abs=1e-5
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--batch-size", "8"], "--batch-size None, not 8"),
        (["--rho", "0.01", "--out-other"], "rho 0.01 is not feasible"),
        (["--zone", "NOWHERE", "--out-other"], "NOWHERE"),
        (["--method", "magic", "--out-other"], "--method must be one of"),
    ],
)
def test_refusals_are_one_sentence(job, straight, more, said):
    is_other = "--out-other" in more
    name = f"refused-{len(said)}" if is_other else straight.name
    _, process = job(name, *(part for part in more if part != "--out-other"))
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert said in text
    assert "Traceback" not in text
