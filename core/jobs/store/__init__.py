"""Every query of the job engine, by noun. Reads take a session and return frozen records."""

from core.jobs.store.discarded import forget_discarded, list_discarded, postpone_discarded
from core.jobs.store.files import get_file, get_held_file, list_files
from core.jobs.store.fleet import list_cut_samples, list_jobs_at_work, list_spent
from core.jobs.store.jobs import (
    get_checkpoint,
    get_job,
    list_attempts,
    list_checkpoints,
    list_energy,
    list_energy_merged,
    list_events,
    list_guessed_jobs,
    list_jobs,
    list_overheads,
    list_remarks,
)
from core.jobs.store.models import (
    get_model,
    get_profile_minimum,
    list_costs,
    list_models,
    list_selections_on,
    put_cost,
    put_profile_minimum,
)
from core.jobs.store.uploads import get_upload, list_parts
from core.jobs.store.workers import forget_worker, live_workers, touch_worker

__all__ = [
    "forget_discarded",
    "forget_worker",
    "get_checkpoint",
    "get_file",
    "get_held_file",
    "get_job",
    "get_model",
    "get_profile_minimum",
    "get_upload",
    "list_attempts",
    "list_checkpoints",
    "list_costs",
    "list_cut_samples",
    "list_discarded",
    "list_energy",
    "list_energy_merged",
    "list_events",
    "list_files",
    "list_guessed_jobs",
    "list_jobs",
    "list_jobs_at_work",
    "list_models",
    "list_overheads",
    "list_parts",
    "list_remarks",
    "list_selections_on",
    "list_spent",
    "live_workers",
    "postpone_discarded",
    "put_cost",
    "put_profile_minimum",
    "touch_worker",
]
