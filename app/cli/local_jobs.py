"""Calibration jobs of the configured folder, as `segcal jobs` handles them without a service."""

import time
from collections.abc import Callable

from app.errors import InputError
from app.jobs.queue import Jobs
from app.jobs.store import Job
from app.schemas.fit import WAITING
from app.settings import load_settings

POLL_S = 0.25


def list_locally() -> list[Job]:
    """List the jobs, newest first."""
    return Jobs(load_settings()).files.all()


def cancel_locally(job_id: str) -> Job:
    """Cancel a job; a running one stops within its service. Raises NotFoundError, ConflictError."""
    jobs = Jobs(load_settings())
    jobs.files.read(job_id)  # raises before anything is written
    jobs.recover()  # a job whose service has died is interrupted, and can be cancelled at once
    return jobs.cancel(job_id)


def retry_locally(
    job_id: str, progress: Callable[[str, float], None]
) -> tuple[str | None, dict[str, object] | None]:
    """Run a failed or interrupted job here; return its calibrator and report.

    Raises NotFoundError, ConflictError for a job in another state, and InputError where the fit
    fails again.
    """
    jobs = Jobs(load_settings())
    jobs.files.read(job_id)  # raises before anything is written
    jobs.start()
    try:
        job = jobs.retry(job_id)
        while job.state in WAITING:
            time.sleep(POLL_S)
            job = jobs.files.read(job_id)
            progress(job.stage, job.progress)
    finally:
        jobs.stop()
    if job.state != "succeeded":
        raise InputError(job.error or f"expected the fit to finish, got it {job.state}")
    return job.calibrator, jobs.files.report(job_id)
