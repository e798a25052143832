"""What crosses the broker: task names, queue names and their arguments, nothing else.

A message is a nudge that carries a job id; the database row is the truth. Losing, doubling or
delaying a message changes nothing.
"""

from __future__ import annotations

from typing import Final

RUN_JOB: Final = "greentune.run_job"
SWEEP: Final = "greentune.sweep"
REVISE: Final = "greentune.revise"
TIDY: Final = "greentune.tidy"
JOBS_QUEUE: Final = "greentune.jobs"
CONTROL_QUEUE: Final = "greentune.control"
