"""Background fits: queue, records on disk, and the process of each fit."""

from app.jobs.queue import Jobs
from app.jobs.store import UPLOAD, WAITING, FitRequest, Job, JobStatus, State

__all__ = [
    "UPLOAD",
    "WAITING",
    "FitRequest",
    "Job",
    "JobStatus",
    "Jobs",
    "State",
]
