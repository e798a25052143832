"""Selections against brute force, against an independent integer program and golden data."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Mapping
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from benchmarks.costs import ARCHITECTURES, batch_for, measured_flops
from core.errors import InvalidInput, RhoInfeasible
from core.training.costs import FlopsProfile
from core.training.flops import profile
from core.training.selector import select, selection_curve

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / ".." / "shared" / "golden" / "selector.json"


def tiny_costs(name: str) -> FlopsProfile:
    with torch.device("meta"):
        model = ARCHITECTURES[name].build(ARCHITECTURES[name].tiny)
    return profile(model, batch_for(model, 2, 11, 7))


def best_by_force(costs: FlopsProfile, importance: Mapping[str, float], budget: float) -> float:
    """Largest total importance of all affordable sets, the empty one included."""
    sets = chain.from_iterable(
        combinations(importance, size) for size in range(len(importance) + 1)
    )
    return max(
        (sum(importance[n] for n in names) for names in sets if costs.step_flops(names) <= budget),
        default=-math.inf,
    )


def best_by_program(costs: FlopsProfile, importance: Mapping[str, float], budget: float) -> float:
    """The same by scipy's integer program: x tensors taken, y terms paid, y >= x where needed."""
    n, n_terms = len(costs.names), len(costs.terms)
    scale = costs.full_flops
    rows, columns, signs = [], [], []
    n_rows = 0
    for term, (members, _) in enumerate(costs.terms):
        for i in range(n):
            if members >> i & 1:
                rows += [n_rows, n_rows]
                columns += [i, n + term]
                signs += [-1.0, 1.0]
                n_rows += 1
    needs = np.zeros((n_rows + 1, n + n_terms))
    needs[rows, columns] = signs
    needs[n_rows, n:] = [flops / scale for _, flops in costs.terms]
    lower = np.zeros(n_rows + 1)
    lower[n_rows] = -np.inf
    upper = np.full(n_rows + 1, np.inf)
    upper[n_rows] = (budget - costs.forward_flops) / scale
    values = np.array([importance.get(name, 0.0) for name in costs.names] + [0.0] * n_terms)
    whole = np.array([1] * n + [0] * n_terms)
    solved = milp(
        -values,
        constraints=LinearConstraint(needs, lower, upper),
        integrality=whole,
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert solved.success
    return float(-solved.fun)


@pytest.mark.skipif(not GOLDEN.exists(), reason="no ../shared beside this checkout")
def test_golden_instances() -> None:
    instances = json.loads(GOLDEN.read_text())["instances"]
    assert len(instances) == 60
    for case in instances:
        names = [f"t{i}" for i in range(len(case["t_dy"]))]
        costs = FlopsProfile.chain(names, case["t_dy"], case["t_dw"])
        importance = dict(zip(names, case["importance"], strict=True))
        selection = select(costs, importance, case["budget"])
        curve = selection_curve(costs, importance)
        for found in (selection, curve.selection(case["budget"])):
            assert found.importance == pytest.approx(case["opt_value"], abs=1e-12)
            assert found.flops == costs.step_flops(found.names) <= case["budget"]


prices = st.one_of(st.integers(0, 10), st.floats(0, 10).map(lambda x: round(x, 3)))
worths = st.floats(-1, 1)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[FlopsProfile, dict[str, float], float]:
    """Any coverage cost: every term needed by any set of tensors; chains and forests among them."""
    n = draw(st.integers(1, 7))
    deeper = st.integers(0, n - 1).map(lambda k: (1 << n) - (1 << k))
    members = st.one_of(deeper, st.integers(1, (1 << n) - 1))
    terms = draw(st.dictionaries(members, prices, max_size=12))
    names = tuple(f"t{i}" for i in range(n))
    costs = FlopsProfile(
        names=names,
        forward_flops=draw(st.sampled_from([0, 7])),
        terms=tuple(terms.items()),
        connected=(1 << n) - 1,
    )
    importance = {name: draw(worths) for name in names}
    # often exactly the cost of a set, where rounding errors would show
    exact = st.sets(st.sampled_from(names)).map(costs.step_flops)
    share = st.floats(0, 1.1).map(lambda rho: rho * costs.full_flops)
    return costs, importance, draw(st.one_of(exact, share))


@given(graphs(), st.sampled_from([100_000, 1, 3]))
def test_equal_to_brute_force(
    instance: tuple[FlopsProfile, dict[str, float], float], resolution: int
) -> None:
    costs, importance, budget = instance
    singles = {n: costs.step_flops([n]) for n in importance}
    curve = selection_curve(costs, importance)
    if costs.forward_flops and budget < min(singles.values()):
        for choose in (lambda: select(costs, importance, budget), lambda: curve.value(budget)):
            with pytest.raises(RhoInfeasible) as refused:
                choose()
            assert refused.value.rho_min == min(singles.values()) / costs.full_flops
        return
    best = best_by_force(costs, importance, budget)
    if costs.forward_flops and best <= 0:
        best = max(importance[name] for name, flops in singles.items() if flops <= budget)
    rough = select(costs, importance, budget, resolution=resolution)
    assert rough.flops <= budget
    for found in (select(costs, importance, budget), curve.selection(budget)):
        assert found.importance == pytest.approx(best, abs=1e-9)
        assert rough.importance <= found.importance + 1e-9
        assert found.flops == costs.step_flops(found.names) <= budget
        assert found.importance == pytest.approx(sum(importance[n] for n in found.names))
        assert found.is_complete


@pytest.mark.parametrize(
    "name", ["SmolLM2-135M", "OPT-125M", "Pythia-160M", "T5-small", "FLAN-T5-small", "BART-base"]
)
def test_equal_to_an_integer_program_on_real_graphs(name: str) -> None:
    costs = tiny_costs(name)
    rng = random.Random(name)
    importance = {each: rng.gauss(0.3, 1) for each in costs.names}
    curve = selection_curve(costs, importance)
    for rho in (0.5, 0.75):
        budget = rho * costs.full_flops
        found = select(costs, importance, budget)
        best = best_by_program(costs, importance, budget)
        assert found.flops <= budget
        assert found.importance == pytest.approx(best, rel=1e-6)
        assert curve.value(budget) == pytest.approx(best, rel=1e-6)


def random_chain(n: int, seed: int) -> tuple[FlopsProfile, dict[str, float]]:
    rng = random.Random(seed)
    names = [f"t{i}" for i in range(n)]
    costs = FlopsProfile.chain(names, [rng.random() for _ in names], [rng.random() for _ in names])
    return costs, {name: rng.gauss(0.3, 1) for name in names}


@pytest.mark.parametrize("seed", range(4))
def test_rounded_prices_keep_the_stated_bound(seed: int) -> None:
    resolution = 500
    costs, importance = random_chain(40, seed)
    budget = 0.4 * costs.full_flops
    found = select(costs, importance, budget, resolution=resolution)
    n_gainful = sum(value > 0 for value in importance.values())
    less = budget * (1 - 2 * n_gainful / resolution)
    assert found.flops <= budget
    assert best_by_program(costs, importance, less) - 1e-9 <= found.importance
    assert found.importance <= best_by_program(costs, importance, budget) + 1e-6


def test_a_finer_grid_reaches_the_optimum() -> None:
    costs, importance = random_chain(40, 9)
    budget = 0.4 * costs.full_flops
    best = best_by_program(costs, importance, budget)
    assert select(costs, importance, budget).importance == pytest.approx(best, rel=1e-4)


def test_measured_flops_stay_within_rho() -> None:
    for name in ("SmolLM2-135M", "T5-small"):
        with torch.device("meta"):
            model = ARCHITECTURES[name].build(ARCHITECTURES[name].tiny)
        batch = batch_for(model, 2, 11, 7)
        costs = profile(model, batch)
        rng = random.Random(1)
        for rho in (0.45, 0.6, 0.8):
            importance = {each: rng.random() for each in costs.names}
            found = select(costs, importance, rho * costs.full_flops)
            spent = sum(measured_flops(model, batch, set(found.names)))
            assert spent == found.flops <= rho * costs.full_flops


def test_means_of_profiles_are_selected_on_exactly() -> None:
    """Averaged costs are no whole numbers any more, yet multiples of a common unit."""
    with torch.device("meta"):
        model = ARCHITECTURES["SmolLM2-135M"].build(ARCHITECTURES["SmolLM2-135M"].tiny)
    sizes = [profile(model, batch_for(model, 2, tokens, 0)) for tokens in (7, 10, 23)]
    costs = FlopsProfile.mean(sizes, [0.3, 0.6, 0.1])
    rng = random.Random(0)
    importance = {name: rng.gauss(0.3, 1) for name in costs.names}
    budget = 0.6 * costs.full_flops
    best = best_by_program(costs, importance, budget)
    assert select(costs, importance, budget).importance == pytest.approx(best, rel=1e-6)


def test_the_curve_agrees_with_single_selections_everywhere() -> None:
    costs = tiny_costs("BART-base")
    rng = random.Random(3)
    importance = {each: rng.gauss(0.2, 1) for each in costs.names}
    curve = selection_curve(costs, importance)
    assert np.all(np.diff(curve.budgets_flops) > 0)
    assert np.all(np.diff(curve.values) > 0)
    assert curve.budgets_flops[0] == pytest.approx(costs.min_rho * costs.full_flops)
    for place in range(0, len(curve.values), max(1, len(curve.values) // 7)):
        budget = float(curve.budgets_flops[place])
        single = select(costs, importance, budget)
        assert single.importance == pytest.approx(float(curve.values[place]), abs=1e-9)
    assert curve.value(costs.full_flops) == pytest.approx(
        sum(value for value in importance.values() if value > 0)
    )


def test_a_model_always_trains_something() -> None:
    costs = tiny_costs("OPT-125M")
    importance = dict.fromkeys(costs.names, -1.0) | {costs.names[-1]: -0.5}
    found = select(costs, importance, costs.full_flops)
    assert found.names == costs.names[-1:]
    assert found.importance == -0.5
    assert selection_curve(costs, importance).selection(costs.full_flops) == found


def test_too_small_a_budget_names_the_lowest_rho() -> None:
    costs = tiny_costs("OPT-125M")
    importance = dict.fromkeys(costs.names, 1.0)
    with pytest.raises(RhoInfeasible, match=r"lowest feasible one, 0\.\d{4}") as refused:
        select(costs, importance, 0.9 * costs.min_rho * costs.full_flops)
    assert refused.value.rho_min == costs.min_rho
    feasible = select(costs, importance, costs.min_rho * costs.full_flops * (1 + 1e-9))
    assert feasible.names


def test_only_candidates_are_selected() -> None:
    costs = tiny_costs("OPT-125M")
    importance = {name: 1.0 for name in costs.names if name.endswith(".bias")}
    found = select(costs, importance, costs.full_flops)
    assert set(found.names) == set(importance)


@pytest.mark.parametrize(
    ("importance", "resolution", "message"),
    [
        ({"t9": 1.0}, 10, "'t9'"),
        ({"t0": math.nan}, 10, "t0 is nan"),
        ({"t0": math.inf}, 10, "t0 is inf"),
        ({}, 10, "no parameter to choose from"),
        ({"t0": 1.0}, 0, "resolution"),
    ],
)
def test_nonsense_is_refused(importance: Any, resolution: int, message: str) -> None:
    costs = FlopsProfile.chain(["t0"], [1], [1])
    with pytest.raises(InvalidInput, match=message):
        select(costs, importance, 5, resolution=resolution)


@pytest.mark.parametrize("budget", [-1.0, math.nan])
def test_a_chain_cannot_pay_less_than_nothing(budget: float) -> None:
    with pytest.raises(RhoInfeasible):
        select(FlopsProfile.chain(["t0"], [1], [1]), {"t0": 1.0}, budget)


def test_an_endless_graph_is_cut_and_says_so() -> None:
    """Terms in a ring of pairs, many of them: no chain, no meeting point."""
    rng = random.Random(0)
    n = 60
    terms = {1 << i: rng.random() for i in range(n)}
    for _ in range(5 * n):
        a, b = rng.sample(range(n), 2)
        terms[1 << a | 1 << b] = rng.random()
    costs = FlopsProfile(
        names=tuple(f"t{i}" for i in range(n)),
        forward_flops=1,
        terms=tuple(terms.items()),
        connected=(1 << n) - 1,
    )
    importance = {name: rng.random() for name in costs.names}
    budget = 0.5 * costs.full_flops
    found = select(costs, importance, budget, resolution=200)
    assert not found.is_complete
    assert found.importance > 0
    assert found.flops <= budget


def test_the_selector_needs_no_torch() -> None:
    code = "import sys, core.training.selector; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
