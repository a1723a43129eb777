"""`python -m tests.fleet.campaign`: thousands of requests while replicas and fits are killed.

Starts a server of S3, replicas of the service that share its bucket, and HAProxy with
`deploy/haproxy/haproxy.cfg`. Clients send small images through HAProxy, without a retry of their
own. Meanwhile versions are activated, fits are run, and random replicas and processes of fits are
killed with SIGKILL; replicas are started again at once. Prints the findings as JSON, and exits with
1 where there is a fault. The choices are drawn from `--seed`; their times depend on the machine.
"""

import argparse
import itertools
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from app.jobs.store import JobFiles
from app.schemas.fit import WAITING
from app.storage.artifacts import ArtifactStore
from app.storage.lease import last_number, lease_path
from app.storage.objects import LAG_S, Objects
from tests.deploy.test_haproxy import ADMIN
from tests.factories.jobs import wait_for, worker_pid
from tests.factories.models import write_onnx_model
from tests.factories.service import decoded, encoded, post, publish_temperature
from tests.factories.validation_data import npz, overconfident
from tests.fleet.history import Answer, Times, largest_staleness, read_history
from tests.fleet.replicas import MODELS, URL, Fleet, Replica, open_bucket, open_fleet

LOG = logging.getLogger(__name__)
MODEL = "tiny"
TEMPERATURES = (0.5, 2.0, 4.0)  # of the versions that are activated; 3 is the best
HEIGHT, WIDTH = 72, 96
IMAGES = 16
NOTICE_S = 2.0  # in which HAProxy's checks find a replica that is ready
RETRY_S = 5.0  # of a fit; most wait for the lease of one that was killed
REASONS = ("SIGKILL", "server that was stopped", "no other fit")
FIT_PATIENCE_S = 900  # with the leases of killed fits, each of which holds others for 60 s
LAST = "the last activation"


@dataclass(frozen=True)
class Plan:
    """Parameters of a campaign: least numbers of requests, kills and fits, and mean times."""

    requests: int = 10_000
    replicas: int = 4
    clients: int = 8
    kills: int = 20
    fits: int = 6
    pause_s: float = 0.15  # of a client between two requests
    activation_s: float = 4.0  # between two activations
    fit_s: float = 3.0  # between two fits
    kill_s: float = 8.0  # between two kills, besides the time until enough replicas are ready
    fitter_kills: float = 0.5  # fraction of the fits whose process is killed
    limit_s: float = 3600.0  # after which the clients end
    seed: int = 0


@dataclass
class Findings:
    """Counts of a campaign; `faults` is empty where all checks hold."""

    seconds: float = 0.0
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    repeated_by_haproxy: int = 0
    replicas_killed: int = 0
    fits: int = 0  # that have succeeded
    fits_killed: int = 0
    retried: Counter[str] = field(default_factory=Counter)  # fits, by the reason of their failure
    activations: Counter[str] = field(default_factory=Counter)  # by status
    jobs: Counter[str] = field(default_factory=Counter)  # by state at the end
    changes: int = 0
    largest_staleness_s: float = 0.0
    store_failures: int = 0
    faults: list[str] = field(default_factory=list)


def reason_of(error: str) -> str:
    """Return which of `REASONS` a job's error names, or the error."""
    return next((reason for reason in REASONS if reason in error), error)


def draw_images(seed: int) -> list[tuple[bytes, np.ndarray[Any, Any]]]:
    """Draw images as PNG, each pixel red, green or blue, and the label maps that they have."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(IMAGES):
        blocks = rng.integers(0, 3, (HEIGHT // 24, WIDTH // 24), dtype=np.uint8)
        labels = blocks.repeat(24, axis=0).repeat(24, axis=1)
        drawn.append((encoded((np.eye(3, dtype=np.uint8) * 255)[labels]), labels))
    return drawn


class Campaign:
    """The threads of a campaign: clients, activations, fits and kills."""

    def __init__(self, plan: Plan, fleet: Fleet, versions: Sequence[str]) -> None:
        self.plan, self.fleet = plan, fleet
        self.versions = list(versions)
        self.findings = Findings()
        self.answers: list[Answer] = []
        self.times: dict[str, Times] = {}  # of the changes that were answered, by reason or author
        self._numbers = itertools.count()
        self._ended = threading.Event()
        self._limit = time.time() + plan.limit_s
        self._images = draw_images(plan.seed)

    def run(self) -> None:
        """Send the requests while the other threads change, fit and kill."""
        began = time.monotonic()
        with ThreadPoolExecutor(self.plan.clients + 3) as threads:
            others = [
                threads.submit(self._or_end, each)
                for each in (self.activate_versions, self.fit, self.kill)
            ]
            clients = [
                threads.submit(self._or_end, self.send, number)
                for number in range(self.plan.clients)
            ]
            try:
                for client in clients:
                    client.result()
            finally:
                self._ended.set()
            for other in others:
                other.result()
        self.findings.seconds = round(time.monotonic() - began, 1)
        self.findings.requests = len(self.answers)
        self.findings.repeated_by_haproxy = self.fleet.repeated()

    def _or_end(self, work: Callable[..., None], *arguments: int) -> None:
        """Do a thread's work; where it fails, end the others."""
        try:
            work(*arguments)
        except BaseException:
            self._ended.set()
            raise

    def send(self, client_number: int) -> None:
        """Send images as one client does, until enough were sent and enough replicas killed."""
        rng = random.Random(f"{self.plan.seed} client {client_number}")
        with self.client() as client:
            while not self._ended.is_set():
                number = next(self._numbers)
                sent = time.time()
                if (number >= self.plan.requests and self._has_enough()) or sent > self._limit:
                    break
                fault, version = self.segment(client, number)
                self.answers.append(Answer(sent, time.time(), version))
                if fault:
                    self.findings.failed.append(f"request {number}: {fault}")
                    LOG.warning("request %d: %s", number, fault)
                if number % 500 == 499:
                    LOG.info("%d requests; %s", number + 1, self.findings)
                time.sleep(rng.expovariate(1) * self.plan.pause_s)

    def _has_enough(self) -> bool:
        found = self.findings
        return found.replicas_killed >= self.plan.kills and found.fits >= self.plan.fits

    def segment(self, client: httpx2.Client, number: int) -> tuple[str | None, str | None]:
        """Send one image; return the fault of its answer and the version that it names."""
        image, labels = self._images[number % IMAGES]
        try:
            answer = post(client, image, {"Accept": "image/png"})
        except httpx2.TransportError as error:
            return repr(error), None
        if answer.status_code != 200:
            return f"{answer.status_code}: {answer.text[:200]}", None
        version = answer.headers["x-calibrator"]
        if not (np.asarray(decoded(answer.content)) == labels).all():
            return "another label map", version
        return None, version

    def activate_versions(self) -> None:
        """Activate random versions through the balancer."""
        rng = random.Random(f"{self.plan.seed} activations")
        for number in itertools.count():
            if self._ended.wait(rng.uniform(0.5, 1.5) * self.plan.activation_s):
                break
            self.activate(rng.choice(self.versions), f"activation {number}")
        wait_for(lambda: self.activate(self.versions[0], LAST), "an activation")

    def activate(self, version: str, reason: str) -> bool:
        """Activate a version through the balancer; return whether it was answered with success."""
        sent = time.time()
        with self.client() as client:
            try:
                path = f"/calibrators/{version}/activate"
                status = client.post(path, json={"reason": reason}, headers=ADMIN).status_code
            except httpx2.TransportError as error:
                self.findings.activations[type(error).__name__] += 1
                return False
        if status == 200:
            self.times[reason] = Times(sent, time.time())
        self.findings.activations[str(status)] += 1
        return status == 200

    def fit(self) -> None:
        """Run fits on random replicas, each until it has succeeded; kill the process of some."""
        rng = random.Random(f"{self.plan.seed} fits")
        for number in itertools.count():
            replica = rng.choice(self.fleet.replicas)
            killed_after_s = rng.uniform(0, 10) if rng.random() < self.plan.fitter_kills else None
            logits, labels = overconfident(seed=number)
            files = {"logits": ("logits.npz", npz(logits=logits, labels=labels))}
            answer = replica.request(
                "POST", "/calibrate", files=files, data={"method": "temperature"}
            )
            if answer is not None and answer.status_code == 202:
                self.follow(replica, answer.headers["location"], killed_after_s)
            if self._ended.wait(rng.uniform(0.5, 1.5) * self.plan.fit_s):
                break

    def follow(self, replica: Replica, location: str, killed_after_s: float | None) -> None:
        """Read a job until it has succeeded; retry it where it has failed or was interrupted."""
        sent, job_id = time.time(), location.rpartition("/")[2]
        while time.time() - sent < FIT_PATIENCE_S:
            answer = replica.request("GET", location)
            job = answer.json() if answer is not None and answer.status_code == 200 else {}
            if job.get("state") == "succeeded":
                self.findings.fits += 1
                self.versions.append(job["calibrator"])
                if job["activated"]:
                    self.times[f"job {job_id}"] = Times(sent, time.time())
                return
            if job.get("state") in ("failed", "interrupted"):
                time.sleep(RETRY_S)
                answer = replica.request("POST", f"{location}/retry")
                if answer is not None and answer.status_code == 202:
                    self.findings.retried[reason_of(job["error"])] += 1
            elif (pid := worker_pid(replica.state / ".jobs" / job_id)) is not None:
                with suppress(ProcessLookupError, PermissionError):
                    if killed_after_s is not None and time.time() - sent > killed_after_s:
                        os.kill(pid, signal.SIGKILL)
                        self.findings.fits_killed += 1
                        killed_after_s = None
                    else:  # the clients would leave it no processor of two
                        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0))
            time.sleep(0.2)
        self.findings.faults.append(f"the job {job_id} has not succeeded in {FIT_PATIENCE_S} s")

    def kill(self) -> None:
        """Kill random replicas while more than half of all are ready, and start them again."""
        rng = random.Random(f"{self.plan.seed} kills")
        while not self._ended.wait(rng.uniform(0.5, 1.5) * self.plan.kill_s):
            ready = self.fleet.ready()
            if len(ready) <= self.plan.replicas // 2:
                continue
            time.sleep(NOTICE_S)
            rng.choice(ready).kill()
            self.findings.replicas_killed += 1

    def client(self) -> httpx2.Client:
        """Open a client of the balancer, which retries nothing."""
        return httpx2.Client(base_url=self.fleet.url, timeout=90)


def check(
    plan: Plan, findings: Findings, answers: Sequence[Answer], times: Mapping[str, Times]
) -> None:
    """Check the history, the named versions, and the lease; add what does not hold as faults."""
    short = findings.replicas_killed < plan.kills or findings.fits < plan.fits
    if len(answers) < plan.requests or short:
        findings.faults.append(f"the time of {plan.limit_s:g} s was too short")
    if findings.failed:
        findings.faults.append(f"{len(findings.failed)} requests failed")
    objects = Objects.open(URL)
    changes, numbers = read_history(objects, MODEL)
    findings.changes = len(changes)
    if numbers != list(range(1, len(numbers) + 1)):
        findings.faults.append("the history has a gap")
    reasons = Counter(change["reason"] for change in changes)
    activations = [reason for reason in times if not reason.startswith("job ")]
    if lost := [reason for reason in activations if not reasons[reason]]:
        findings.faults.append(f"answered activations that the history lacks: {lost}")
    if twice := [r for r, n in reasons.items() if n > 1 and r.startswith("activation ")]:
        findings.faults.append(f"activations that the history has more than once: {twice}")
    if ArtifactStore(URL).active_id(MODEL) != changes[-1]["calibrator"]:
        findings.faults.append("the active version is not that of the last change")
    staleness = largest_staleness(answers, changes, times)
    findings.largest_staleness_s = round(staleness, 3)
    if staleness > LAG_S:
        findings.faults.append(f"a version was named {staleness:.3f} s after it was superseded")
    lease = objects.read(lease_path(MODEL, last_number(objects, MODEL)))
    if lease is not None and lease.document["ends_at"] > time.time():
        findings.faults.append("the lease of a fit is held")


def check_replica(findings: Findings, replica: Replica) -> None:
    """Count a replica's jobs by state and its failed readings of the store."""
    states = Counter(str(job.state) for job in JobFiles(replica.state / ".jobs").all())
    findings.jobs += states
    findings.store_failures += replica.served.log.read_text("utf-8").count("serving goes on with")
    if waiting := sum(states[state] for state in WAITING):
        findings.faults.append(f"{waiting} jobs of {replica.folder.name} have not ended")


def run_campaign(folder: Path, plan: Plan) -> Findings:
    """Run a campaign with all its servers in a folder; return what it found."""
    write_onnx_model(folder / MODELS, MODEL)
    with open_bucket():
        model = folder / MODELS / MODEL
        versions = [publish_temperature(URL, model, each) for each in TEMPERATURES]
        published = time.time()
        with open_fleet(folder, plan.replicas) as fleet:
            campaign = Campaign(plan, fleet, versions)
            campaign.times["for a test"] = Times(published, published)  # the reason it gives
            campaign.run()
            wait_for(lambda: len(fleet.ready()) == plan.replicas, "all replicas to be ready")
            check(plan, campaign.findings, campaign.answers, campaign.times)
            for replica in fleet.replicas:
                check_replica(campaign.findings, replica)
    return campaign.findings


def main() -> int:
    """Run the campaign of the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    plan = Plan()
    for name, default in asdict(plan).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    chosen = Plan(**vars(parser.parse_args()))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx2").setLevel("WARNING")
    with tempfile.TemporaryDirectory() as name:
        findings = run_campaign(Path(name), chosen)
    sys.stdout.write(json.dumps({"plan": vars(chosen), **vars(findings)}, indent=2) + "\n")
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())
