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
    energy, account    joules x intensity -> report (pure)
    report, page       JSON, CSV, HTML        verify      recomputes them from raw samples
"""
