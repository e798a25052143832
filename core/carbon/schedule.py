"""The planner's arithmetic: which cells of time to run in. Batched, so that one code plans a job
and simulates a hundred thousand.

Shapes: B jobs, N cells of equal width, K cells of work. ``intensity_BN`` is what a second of
running costs in each cell, in any unit of cost per second.

Without a cost of suspending, the cheapest plan fills the cheapest cells first, which is the optimum
of the linear programme  min sum_i c_i t_i  subject to  sum_i t_i = need, 0 <= t_i <= width.
With one, a dynamic programme over (cell, cells run so far, running or not) is exact for whole
cells; what is over after the last whole cell is taken off the dirtiest end of a stretch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: relative; among equals the earlier cell wins, so that a flat forecast means "now"
_TIE = 1e-12
#: halvings of 1 - rho_min: to a millionth
_BISECTIONS = 20


def cheapest_cells(
    intensity_BN: Floats,
    need_s_B: Floats,
    *,
    width_s: float,
    start_cost_s_B: Floats,
    running_B: Bools,
) -> Floats:
    """Seconds to run in each cell, (B, N), at least total cost.

    Args:
        need_s_B: seconds of work, 0..N x ``width_s``.
        start_cost_s_B: cost of starting a stretch, as seconds of running in its first cell.
        running_B: the job runs already; going on in cell 0 costs no start.
    """
    free_B = start_cost_s_B <= 0
    if free_B.all():
        return fill_cheapest(intensity_BN, need_s_B, width_s=width_s)
    amounts_BN = _fewest_stretches(intensity_BN, need_s_B, width_s, start_cost_s_B, running_B)
    if free_B.any():
        filled_BN = fill_cheapest(intensity_BN[free_B], need_s_B[free_B], width_s=width_s)
        amounts_BN[free_B] = filled_BN
    return amounts_BN


def fill_cheapest(intensity_BN: Floats, need_s_B: Floats, *, width_s: float) -> Floats:
    """The optimum of the linear programme: cheapest cells first, the last one in part."""
    order_BN = np.argsort(intensity_BN, axis=1, kind="stable")
    before_s_N = np.arange(intensity_BN.shape[1]) * width_s
    sorted_BN = np.clip(need_s_B[:, None] - before_s_N, 0.0, width_s)
    amounts_BN = np.empty_like(sorted_BN)
    np.put_along_axis(amounts_BN, order_BN, sorted_BN, axis=1)
    return amounts_BN


def cheapest_stretch(intensity_BN: Floats, need_s_B: Floats, *, width_s: float) -> Floats:
    """Seconds to run in each cell, (B, N), in one go at least total cost; the last cell in part."""
    n_jobs, n_cells = intensity_BN.shape
    whole_B = np.floor(need_s_B / width_s + 1e-9).astype(np.int64)
    part_B = np.maximum(need_s_B / width_s - whole_B, 0.0)
    sums_BN = np.concatenate([np.zeros((n_jobs, 1)), np.cumsum(intensity_BN, axis=1)], axis=1)
    begin_N = np.arange(n_cells)
    end_BN = begin_N + whole_B[:, None]
    fits_BN = end_BN + (part_B[:, None] > 0) <= n_cells
    rows_B1 = np.arange(n_jobs)[:, None]
    tail_BN = part_B[:, None] * intensity_BN[rows_B1, np.minimum(end_BN, n_cells - 1)]
    total_BN = sums_BN[rows_B1, np.minimum(end_BN, n_cells)] - sums_BN[:, :-1] + tail_BN
    first_B = np.where(fits_BN, total_BN, np.inf).argmin(axis=1)
    since_s_BN = (begin_N - first_B[:, None]) * width_s
    left_s_BN = need_s_B[:, None] - since_s_BN
    return np.where(since_s_BN >= 0, np.clip(left_s_BN, 0.0, width_s), 0.0)


def settle(amounts_N: Floats, intensity_N: Floats, *, width_s: float, running: bool) -> Floats:
    """The same seconds without pauses inside a cell: what a cell amid a stretch leaves over is
    taken off the dirtier end of that stretch instead (not off a job that runs right now).
    """
    settled_N = amounts_N.copy()
    used_N = amounts_N > 0
    for cell in np.flatnonzero(used_N[1:-1] & used_N[:-2] & used_N[2:]) + 1:
        left_s = width_s - settled_N[cell]
        if left_s <= 0:
            continue
        first, last = cell, cell
        while first > 0 and settled_N[first - 1] > 0:
            first -= 1
        while last + 1 < len(settled_N) and settled_N[last + 1] > 0:
            last += 1
        keep_first = running and first == 0
        end = last if keep_first or intensity_N[last] > intensity_N[first] else first
        taken_s = min(left_s, settled_N[end])
        settled_N[cell] += taken_s
        settled_N[end] -= taken_s
    return settled_N


def starts(amounts_BN: Floats, running_B: Bools) -> Bools:
    """Cells in which a stretch begins that is not the one already running."""
    on_BN = amounts_BN > 0
    before_BN = np.concatenate([running_B[:, None], on_BN[:, :-1]], axis=1)
    return np.asarray(on_BN & ~before_BN)


def cost(
    amounts_BN: Floats, intensity_BN: Floats, start_cost_s_B: Floats, running_B: Bools
) -> Floats:
    """Total cost of plans, (B,): running plus starting."""
    begun_BN = starts(amounts_BN, running_B) * start_cost_s_B[:, None]
    return np.asarray(((amounts_BN + begun_BN) * intensity_BN).sum(axis=1))


def _fewest_stretches(
    intensity_BN: Floats,
    need_s_B: Floats,
    width_s: float,
    start_cost_s_B: Floats,
    running_B: Bools,
) -> Floats:
    n_jobs, n_cells = intensity_BN.shape
    # a hair less, or rounding would ask for a cell more than there are; but what is left to do, be
    # it less than that hair, takes a cell
    cells_B = np.maximum(np.ceil(need_s_B / width_s - 1e-9), need_s_B > 0).astype(np.int64)
    k_max = int(cells_B.max(initial=0))
    tie = _TIE * (1.0 + float(np.abs(intensity_BN).max(initial=0.0)))
    run_BK = np.full((n_jobs, k_max + 1), np.inf)
    idle_BK = run_BK.copy()
    run_BK[running_B, 0] = 0.0
    idle_BK[~running_B, 0] = 0.0
    began_NBK = np.empty((n_cells, n_jobs, k_max + 1), dtype=bool)
    ended_NBK = np.empty_like(began_NBK)
    start_B = start_cost_s_B / width_s
    for i in range(n_cells):
        here_B = intensity_BN[:, i] + tie * i
        started_BK = idle_BK + (start_B * here_B)[:, None]
        began_NBK[i] = started_BK < run_BK
        ended_NBK[i] = run_BK < idle_BK
        going_BK = np.minimum(started_BK, run_BK)
        idle_BK = np.minimum(run_BK, idle_BK)
        run_BK = np.full_like(going_BK, np.inf)
        run_BK[:, 1:] = going_BK[:, :-1] + here_B[:, None]
    rows_B = np.arange(n_jobs)
    on_B = run_BK[rows_B, cells_B] < idle_BK[rows_B, cells_B]
    chosen_BN = _walk_back(began_NBK, ended_NBK, cells_B, on_B)
    return _trim(chosen_BN, intensity_BN, need_s_B, width_s, running_B)


def _walk_back(
    began_NBK: Bools, ended_NBK: Bools, cells_B: npt.NDArray[np.int64], on_B: Bools
) -> Bools:
    n_cells, n_jobs, _ = began_NBK.shape
    rows_B = np.arange(n_jobs)
    left_B = cells_B.copy()
    chosen_BN = np.zeros((n_jobs, n_cells), dtype=bool)
    for i in range(n_cells - 1, -1, -1):
        chosen_BN[:, i] = on_B
        left_B = left_B - on_B
        was_on_B = np.where(on_B, ~began_NBK[i, rows_B, left_B], ended_NBK[i, rows_B, left_B])
        on_B = was_on_B
    return chosen_BN


def _trim(
    chosen_BN: Bools, intensity_BN: Floats, need_s_B: Floats, width_s: float, running_B: Bools
) -> Floats:
    """Whole cells less what is too much, off the dirtiest end of a stretch (a job that runs is not
    stopped at once for it).
    """
    amounts_BN: Floats = chosen_BN.astype(np.float64) * width_s
    edge_BN = chosen_BN.copy()
    edge_BN[:, 1:-1] &= ~(chosen_BN[:, :-2] & chosen_BN[:, 2:])
    edge_BN[running_B & (edge_BN.sum(axis=1) > 1), 0] = False
    dirtiest_B = np.where(edge_BN, intensity_BN, -np.inf).argmax(axis=1)
    rows_B = np.arange(len(need_s_B))
    whole_B = amounts_BN[rows_B, dirtiest_B]
    # by what the others leave, not by what is too much: that would round a tiny need away
    rest_s_B = need_s_B - (amounts_BN.sum(axis=1) - whole_B)
    amounts_BN[rows_B, dirtiest_B] = np.clip(rest_s_B, 0.0, whole_B)
    return amounts_BN


def highest_rho(
    intensity_BN: Floats,
    budget_B: Floats,
    *,
    width_s: float,
    limit_s_B: Floats,
    running_B: Bools,
    rho_min: float,
    need_s: Callable[[Floats], Floats],
    power_w: Callable[[Floats], Floats],
    suspend_j: float,
    suspend_s: float = 0.0,
) -> Floats:
    """The highest rho whose cheapest cells fit the budget and the time, (B,); NaN where not even
    ``rho_min`` does. Starts are charged as if no two stretches were merged for their sake, so the
    plan made at this rho costs no more than the budget.

    Args:
        intensity_BN: cost per joule in each cell (g/J, or 1 for an energy budget).
        budget_B: what may be spent, in the same unit of cost.
        limit_s_B: most seconds of running that fit.
        need_s, power_w: seconds of work, and power while running, at each rho; both rising.
        suspend_j, suspend_s: energy and time (at running power) of each start.
    """
    order_BN = np.argsort(intensity_BN, axis=1, kind="stable")
    sorted_BN = np.take_along_axis(intensity_BN, order_BN, axis=1)
    before_s_N = np.arange(intensity_BN.shape[1]) * width_s

    def fits(rho_B: Floats) -> Bools:
        need_s_B, power_B = need_s(rho_B), power_w(rho_B)
        ranked_BN = np.clip(need_s_B[:, None] - before_s_N, 0.0, width_s)
        if suspend_j == suspend_s == 0:
            spent_B = power_B * (ranked_BN * sorted_BN).sum(axis=1)
        else:
            amounts_BN = np.empty_like(ranked_BN)
            np.put_along_axis(amounts_BN, order_BN, ranked_BN, axis=1)
            start_s_B = suspend_j / power_B + suspend_s
            spent_B = power_B * cost(amounts_BN, intensity_BN, start_s_B, running_B)
        return np.asarray((spent_B <= budget_B) & (need_s_B <= limit_s_B))

    low_B = np.full(len(budget_B), rho_min)
    high_B = np.ones(len(budget_B))
    feasible_B = fits(low_B)
    low_B = np.where(fits(high_B), high_B, low_B)
    for _ in range(_BISECTIONS):
        middle_B = (low_B + high_B) / 2
        fits_B = fits(middle_B)
        low_B, high_B = np.where(fits_B, middle_B, low_B), np.where(fits_B, high_B, middle_B)
    return np.where(feasible_B, low_B, np.nan)
