"""Settings of the service, read once from environment variables with the prefix `SEGCAL_`."""

import os
import re
import tempfile
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import SettingsError

MEBI = 1 << 20
PREFIX = "SEGCAL_"
CLIENT_VARIABLES = {"SEGCAL_TOKEN"}  # read by the command line
# Set by Kubernetes in all containers beside a Service named "segcal".
SERVICE_LINK = re.compile(r"SEGCAL_(SERVICE_(HOST|PORT\w*)|PORT(_[0-9]+_\w+)?)")
HOST = re.compile(r"[A-Za-z0-9.\-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:/+")
BUCKET = re.compile(r"(s3|gs|az)://[^/?#@\s]+(/[^?#\s]*)?")
ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.\-\[\]:]+")
CONTROL_GROUPS = Path("/sys/fs/cgroup")  # of version 2, or folders of version 1
SHUTDOWN_RESERVE_S = 10.0  # of the time of a shutdown: to stop a fit, close connections and exit


def available_cores(groups: Path = CONTROL_GROUPS) -> int:
    """Return the number of cores this process may use, by CPU affinity and container quota.

    Libraries' own defaults ignore the quota and start one thread per core of the host.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = _read_limits(groups, *names)
            return max(1, min(cores, quota // period)) if quota > 0 else cores
    return cores


def available_memory(groups: Path = CONTROL_GROUPS) -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            return min(total, *_read_limits(groups, name))
    return total


def _read_limits(groups: Path, *names: str) -> list[int]:
    """Read the integers of files; raises OSError without a container, ValueError for "max"."""
    return [int(word) for name in names for word in (groups / name).read_text().split()]


def default_state_dir(known: dict[str, object]) -> Path:
    """Return the folder of artefacts; where they are in a bucket, one of the user's state.

    For a user without a home, as in some containers, it is in the system's folder of temporary
    files.
    """
    folder = known.get("artifacts_dir")
    if isinstance(folder, Path):
        return folder
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    except RuntimeError:
        state = Path(tempfile.gettempdir())
    return state / "segcal"


def default_results_dir(known: dict[str, object]) -> str | None:
    """Return a prefix beside the artefacts where they are in a bucket; None elsewhere."""
    bucket = known.get("artifacts_dir")
    return f"{bucket.rstrip('/')}/.results" if isinstance(bucket, str) else None


class Settings(BaseSettings):
    """Settings; the variable of a field is its name in capitals with the prefix."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True
    )

    models_dir: Path = Path("models")
    artifacts_dir: Path | str = Path("calibration_artifacts")  # text for the URL of a bucket
    state_dir: Path = Field(default_factory=default_state_dir)
    default_model: str | None = None
    admin_token: str | None = Field(None, min_length=8)
    api_tokens: Annotated[tuple[str, ...], NoDecode] = ()
    metrics_token: str | None = Field(None, min_length=8)
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    grpc_port: int | None = Field(None, ge=1, le=65535)
    max_upload_bytes: int = Field(32 * MEBI, ge=1)
    max_calibration_bytes: int = Field(8192 * MEBI, ge=1)
    max_pixels: int = Field(50_000_000, ge=1)
    upload_timeout_s: float = Field(30.0, gt=0)
    upload_buffer_bytes: int = Field(256 * MEBI, ge=1)
    download_timeout_s: float = Field(30.0, gt=0)
    # Longer than the 60 s of most proxies: if the server closed an idle connection first, the proxy
    # could send a request to a connection that is being closed.
    idle_timeout_s: float = Field(75.0, gt=0)
    shutdown_timeout_s: float = Field(30.0, gt=SHUTDOWN_RESERVE_S)
    connection_limit: int = Field(512, ge=1)
    client_connection_limit: int = Field(128, ge=1)
    queue_limit: int = Field(64, ge=1)
    request_timeout_s: float = Field(60.0, gt=0)
    job_limit: int = Field(8, ge=1)
    retry_bytes: int = Field(16384 * MEBI, ge=0)
    result_ttl_s: float = Field(600.0, ge=0)
    result_bytes: int = Field(256 * MEBI, ge=0)
    results_dir: Path | str | None = Field(default_factory=default_results_dir)  # as artifacts_dir
    memory_bytes: int = Field(default_factory=available_memory, ge=1)
    threads: int = Field(default_factory=available_cores, ge=1)
    # At least two, so that one request of a large image does not hold all others.
    workers: int = Field(default_factory=lambda known: max(2, known.get("threads", 1)), ge=1)
    # Half of the threads, so that requests are served during a fit.
    fit_threads: int = Field(
        default_factory=lambda known: max(1, known.get("threads", 1) // 2), ge=1
    )
    drift_window: int = Field(64, ge=8, le=65536)
    drift_patience: int = Field(32, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    labelstudio_url: str | None = Field(None, pattern=r"^https?://[^/?#@]+(/[^?#]*)?$")
    labelstudio_token: str | None = Field(None, min_length=8)
    labelstudio_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    labelstudio_min_confidence: float = Field(0.9, ge=0, le=1)
    labelstudio_refit_images: int = Field(50, ge=2)
    labelstudio_bytes: int = Field(4096 * MEBI, ge=1)
    log_format: Literal["text", "json"] = "text"
    traces: Literal["none", "otlp"] = "none"

    @field_validator("models_dir", "state_dir", mode="before")
    @classmethod
    def _require_folder(cls, value: object) -> object:
        """Raise ValueError for a URL, of which a path would make a folder named by its scheme."""
        if isinstance(value, str) and SCHEME.match(value):
            raise ValueError("expected a folder")
        return value

    @field_validator("artifacts_dir", "results_dir", mode="before")
    @classmethod
    def _parse_location(cls, value: object) -> object:
        """Turn a folder's name into a path; raises ValueError for a URL that is no bucket's."""
        if not isinstance(value, str) or BUCKET.fullmatch(value):
            return value
        if SCHEME.match(value):
            raise ValueError("expected a folder, or a bucket's URL that begins with s3, gs or az")
        return Path(value)

    @field_validator("api_tokens", mode="before")
    @classmethod
    def _split_tokens(cls, value: object) -> object:
        """Split a comma-separated list; raises ValueError without an entry.

        An empty list would disable authentication.
        """
        if not isinstance(value, str):
            return value
        tokens = tuple(token.strip() for token in value.split(",") if token.strip())
        if not tokens:
            raise ValueError("expected tokens separated by commas")
        return tokens

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        """Split a comma-separated list; raises ValueError for an entry that no browser sends."""
        if not isinstance(value, str):
            return value
        origins = tuple(origin.strip() for origin in value.split(",") if origin.strip())
        if not origins or not all(ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("expected origins such as https://example.org, separated by commas")
        return origins

    @field_validator("labelstudio_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        """Split a comma-separated list; raises ValueError for an entry that is no host."""
        if not isinstance(value, str):
            return value
        hosts = tuple(host.strip().lower() for host in value.split(",") if host.strip())
        if not hosts or not all(HOST.fullmatch(host) for host in hosts):
            raise ValueError("expected hosts such as images.example.org:8080, separated by commas")
        return hosts


def check_names() -> None:
    """Raise SettingsError for a variable with the prefix that is no setting: it has no effect."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    for name, value in os.environ.items():
        if not value or not name.upper().startswith(PREFIX) or name.upper() in known:
            continue
        if SERVICE_LINK.fullmatch(name) and (name != "SEGCAL_PORT" or "://" in value):
            continue
        close = get_close_matches(name.upper(), known, n=1)
        hint = f", such as {close[0]}" if close else ""
        raise SettingsError(f"{name}: expected a setting of this release{hint}, got no such one")


def load_settings(**overrides: object) -> Settings:
    """Read the settings; raises SettingsError naming the variable of a wrong value or name."""
    check_names()
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        # Tokens must not be logged, so the chained error, which contains them, is dropped.
        got = "a secret" if name.endswith(("TOKEN", "TOKENS")) else repr(first["input"])
        message = first["msg"].removeprefix("Value error, ")  # of the validators above
        raise SettingsError(f"{name}: {message}, got {got}") from None
