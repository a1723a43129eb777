"""Background fits: queue, records on disk, and the process of each fit."""

from app.jobs.queue import Jobs
from app.jobs.store import UPLOAD, FitRequest, Job

__all__ = [
    "UPLOAD",
    "FitRequest",
    "Job",
    "Jobs",
]
