"""Grid carbon intensity, plans that follow it, energy metering and emissions reports.

::

    intensity   one value of the grid with all that must travel with it; the port of signals
    static, trace, live + providers/    where values come from; signal opens one by name
    forecast    the provider's opinion blended with the grid's habits
    rho         rho "auto", the rule          work        steps left, their cost, quality
    schedule    which cells of time (batched arithmetic)
    planner     which hours, which rho (pure) offers      ways out of what cannot be met
    estimate    options before submission     simulate    a year of jobs on recorded hours
    sources, tracker, meter    joules of this machine, measured where the hardware allows it
    energy, account, baseline, coverage    joules x intensity: sums, savings, gaps (pure)
    revision    guessed intensities give way to what the grid told later
    held_out    quality beside the grams
    compose     rows and job facts -> report, the one place
    report, page       JSON, CSV, HTML
    evidence, verify   the raw rows, and every figure recomputed from them
"""
