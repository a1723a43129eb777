"""`python -m tests.fuzz.campaign`: send thousands of hostile requests to a real server.

Prints the findings as JSON: inputs, statuses, the slowest request and memory. The request of each
fault is written to the corpus and its seed to the seeds, which `make test` repeats. Exits with 1
where there is a fault.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from app.storage.files import locked
from tests.factories.models import write_onnx_model
from tests.factories.service import publish_temperature
from tests.fuzz.damage import DAMAGED, WHOLE, Damage, requests_on
from tests.fuzz.probe import Answer, Findings, fault_of, send
from tests.fuzz.targets import ADMIN, ADMIN_TOKEN, SHARES, TARGETS, Request

LOG = logging.getLogger(__name__)
CORPUS = Path(__file__).parent / "corpus"
SEEDS = Path(__file__).parent / "seeds.json"
CLIENTS = 2
WARM_UP = 500  # inputs of each target before the memory is measured
SETTLE_S = 10.0
START_S = 240
CHECKS = (
    "not_a_server_error,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,status_code_conformance"
)
SETTINGS = {
    "ADMIN_TOKEN": ADMIN_TOKEN,
    "THREADS": "1",
    "MAX_PIXELS": "4000000",
    "RESULT_BYTES": "8000000",  # full after the first requests, so that it does not count as growth
    "JOB_LIMIT": "1000",
    "RETRY_BYTES": "1000000",
}


def write_service(folder: Path) -> None:
    """Write the models `tiny` and `damaged`, each with an active calibrator."""
    for name in (WHOLE, DAMAGED):
        model = write_onnx_model(folder / "models", name, default=name == WHOLE)
        publish_temperature(folder / "artifacts", model, 2)
        publish_temperature(folder / "artifacts", model, 3)


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[tuple[int, int]]:
    """Serve a folder in a process of its own; yield the process id and the port."""
    variables = {
        "MODELS_DIR": str(folder / "models"), "ARTIFACTS_DIR": str(folder / "artifacts"),
        **SETTINGS, **settings,
    }  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", "--port", "0"],
            env={**os.environ, **{f"SEGCAL_{name}": value for name, value in variables.items()}},
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        port = _port(process, folder / "server.log")
        while send(port, Request("GET", "/readyz")).status != 200:
            time.sleep(0.1)
        yield process.pid, port
        assert process.poll() is None, f"the server ended with {process.returncode}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_S)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the port that the server has chosen, from its log."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text("utf-8", "replace").splitlines():
            if " running on http://127.0.0.1:" in line:
                return int(line.partition("127.0.0.1:")[2].split()[0])
        time.sleep(0.1)
    raise RuntimeError(f"expected a server that starts, got:\n{log.read_text()[-2000:]}")


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


class Campaign:
    """Runs the targets against one server."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._damage = Damage(folder / "artifacts" / DAMAGED)
        self._cancelling = ThreadPoolExecutor(8)
        self.findings = {name: Findings() for name in (*TARGETS, "damage")}

    def run(self, target: str, seeds: Iterable[int]) -> None:
        """Send the requests of a target for each seed, from several clients at once."""
        if target == "damage":  # one client: each seed damages the same files
            for seed in seeds:
                self._send_damaged(seed)
            return
        with ThreadPoolExecutor(CLIENTS) as pool:
            for _ in pool.map(lambda seed: self._send(target, seed), seeds):
                pass
        LOG.info("%s: %d inputs", target, self.findings[target].inputs)

    def _send(self, target: str, seed: int) -> None:
        request = TARGETS[target](seed)
        answer = self._judge(target, seed, request)
        if answer.status == 202:
            job = json.loads(answer.body)["id"]
            request = Request("DELETE", f"/calibrate/{job}", ADMIN)
            self._cancelling.submit(send, self.port, request)

    def _send_damaged(self, seed: int) -> None:
        self._damage.apply(seed)
        for request in requests_on(self._damage.version):
            self._judge("damage", seed, request)
        self._damage.restore()

    def _judge(self, target: str, seed: int, request: Request | bytes) -> Answer:
        answer = send(self.port, request)
        fault = fault_of(request, answer)
        self.findings[target].record(seed, answer, fault)
        if fault is not None:
            data = request if isinstance(request, bytes) else request.encode()
            (CORPUS / f"{target}-{seed}.http").write_bytes(data)
        return answer


def run_schemathesis(command: str, port: int, examples: int) -> bool:
    """Run schemathesis, stateful too, on the OpenAPI document; return whether it found no fault."""
    done = subprocess.run(
        [
            command, "run", f"http://127.0.0.1:{port}/openapi.json", "--no-color",
            "--header", f"Authorization: Bearer {ADMIN_TOKEN}", "--checks", CHECKS,
            "--max-examples", str(examples), "--seed", "1", "--suppress-health-check", "all",
            # No fit runs, so that the events of a job would not end.
            "--exclude-path", "/calibrate/{job}/events", "--request-timeout", "60",
        ],
        check=False,
    )  # fmt: skip
    return done.returncode == 0


def read_seeds() -> dict[str, list[int]]:
    """Read the seeds to repeat, by target."""
    seeds: dict[str, list[int]] = json.loads(SEEDS.read_text("utf-8"))
    return seeds


def keep_seeds(findings: dict[str, Findings]) -> None:
    """Add the seeds of faults to those that are repeated."""
    seeds = read_seeds()
    for name, each in findings.items():
        seeds[name] = sorted({*seeds.get(name, ()), *each.faults})
    SEEDS.write_text(json.dumps(seeds) + "\n", "utf-8")


def report(findings: dict[str, Findings], memory: dict[str, int]) -> dict[str, object]:
    """Return the findings as JSON values."""
    return {
        "inputs": sum(each.inputs for each in findings.values()),
        "faults": sum(len(each.faults) for each in findings.values()),
        "slowest_s": round(max(each.slowest_s for each in findings.values()), 3),
        "memory_kib": memory,
        "targets": {
            name: {
                "inputs": each.inputs,
                "statuses": {str(key): count for key, count in sorted(each.statuses.items())},
                "slowest_s": round(each.slowest_s, 3),
                "slowest_seed": each.slowest_seed,
                "faults": {str(seed): fault for seed, fault in each.faults.items()},
            }
            for name, each in findings.items()
        },
    }  # fmt: skip


def main() -> None:
    """Run a campaign of the given size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=9_000, help="a tenth of all, without damage")
    parser.add_argument("--damage", type=int, default=1_000, help="damaged files, 12 requests each")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", choices=[*TARGETS, "damage"])
    parser.add_argument("--schemathesis", help="its command, run besides the targets")
    parser.add_argument("--examples", type=int, default=300, help="of each operation, for it")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_service(folder)
        # No fit runs, as each would take seconds: uploads are checked, queued and cancelled.
        with serving(folder) as (pid, port), locked(folder / "artifacts" / ".jobs" / ".fitting"):
            campaign = Campaign(folder, port)
            for target in TARGETS:
                campaign.run(target, range(-WARM_UP, 0))
            time.sleep(SETTLE_S)
            memory = {"before": resident_kib(pid)}
            for target in given.targets or campaign.findings:
                count = given.damage if target == "damage" else given.inputs * SHARES[target]
                campaign.run(target, range(given.first_seed, given.first_seed + count))
            conforms = given.schemathesis is None or run_schemathesis(
                given.schemathesis, port, given.examples
            )
            time.sleep(SETTLE_S)
            memory["after"] = resident_kib(pid)
        log = (folder / "server.log").read_text("utf-8", "replace")
        memory["tracebacks"] = log.count("Traceback (most recent call last)")
    text = json.dumps(report(campaign.findings, memory), indent=2)
    sys.stdout.write(text + "\n")
    keep_seeds(campaign.findings)
    if given.out:
        given.out.write_text(text + "\n")
    sys.exit(not conforms or any(each.faults for each in campaign.findings.values()))


if __name__ == "__main__":
    main()
