"""Use cases. Each takes an open session and ``now`` (aware UTC) and leaves the commit to the edge.

``customer``     what the API does for a caller: submit, cancel, pause, resume
``files``        training data and results
``uploads``      files that arrive in parts
``receipts``     their objects, until they have a row
``checkpoints``  those that are of no more use, or not wanted any more
``models``       fine-tuned models, and checkpoints by their names
``quotas``       what one tenant may have
``idempotency``  one effect for a request that is sent twice
``work``         what the owner of a job does: claim, heartbeat, report
``evidence``     the owner's energy samples, overheads and checkpoints
``revisions``    samples accounted again at actual intensities
``endings``      how the owner lets go: succeed, fail, cancelled, paused, hold, release, raised
``sweeper``      settles the jobs whose owner is gone

Every write of a worker is conditional on its fence. `LeaseLost` means: somebody else decides about
the job now, stop and write nothing more.
"""

from core.jobs.service.customer import cancel, pause, resume, submit
from core.jobs.service.endings import (
    cancelled,
    fail,
    hold,
    pause_for_budget,
    paused,
    raised,
    release,
    succeed,
)
from core.jobs.service.evidence import (
    announce_objects,
    record_attribution,
    record_checkpoint,
    record_energy,
    record_overhead,
)
from core.jobs.service.files import create_file, delete_file
from core.jobs.service.idempotency import begin_idempotent, finish_idempotent
from core.jobs.service.models import delete_checkpoint, delete_model
from core.jobs.service.quotas import check_room_for_bytes
from core.jobs.service.receipts import announce_receipt, confirm_receipt
from core.jobs.service.revisions import revise_energy
from core.jobs.service.sweeper import sweep
from core.jobs.service.uploads import add_part, cancel_upload, complete_upload, create_upload
from core.jobs.service.work import (
    append_event,
    claim,
    heartbeat,
    held,
    record_held_out,
    record_plan,
    record_progress,
    set_baseline,
    set_full_cost,
    started,
    validated,
)

__all__ = [
    "add_part",
    "announce_objects",
    "announce_receipt",
    "append_event",
    "begin_idempotent",
    "cancel",
    "cancel_upload",
    "cancelled",
    "check_room_for_bytes",
    "claim",
    "complete_upload",
    "confirm_receipt",
    "create_file",
    "create_upload",
    "delete_checkpoint",
    "delete_file",
    "delete_model",
    "fail",
    "finish_idempotent",
    "heartbeat",
    "held",
    "hold",
    "pause",
    "pause_for_budget",
    "paused",
    "raised",
    "record_attribution",
    "record_checkpoint",
    "record_energy",
    "record_held_out",
    "record_overhead",
    "record_plan",
    "record_progress",
    "release",
    "resume",
    "revise_energy",
    "set_baseline",
    "set_full_cost",
    "started",
    "submit",
    "succeed",
    "sweep",
    "validated",
]
