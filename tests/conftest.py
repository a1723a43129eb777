"""Fixtures of the service tests: a tiny model in the real application.

`client` is shared between tests and must not be changed; a test that needs other settings or its
own artefacts uses `make_client`, one that needs sockets `make_server`.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
for _name in [name for name in os.environ if name.startswith("SEGCAL_")]:
    del os.environ[_name]  # tests must not depend on the developer's environment

from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from app.settings import Settings, load_settings  # noqa: E402
from tests.factories.models import write_onnx_model  # noqa: E402
from tests.factories.service import open_client, open_server, publish_temperature  # noqa: E402

MakeClient = Callable[..., TestClient]
MakeServer = Callable[..., str]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `models/tiny` of three classes and an active temperature of 2."""
    root = tmp_path_factory.mktemp("service")
    model = write_onnx_model(root / "models", "tiny")
    publish_temperature(root / "artifacts", model, temperature=2)
    return root


@pytest.fixture(scope="session")
def client(shared_folder: Path) -> Iterator[TestClient]:
    """Open the service with the model `tiny` and its active calibrator, shared by all tests."""
    settings = load_settings(
        models_dir=shared_folder / "models", artifacts_dir=shared_folder / "artifacts", threads=1
    )
    with open_client(settings) as opened:
        yield opened


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """Return a folder of models with `tiny`, for one test."""
    write_onnx_model(tmp_path / "models", "tiny")
    return tmp_path / "models"


@pytest.fixture
def artifacts_dir(tmp_path: Path) -> Path:
    """Return the path of a folder of artefacts that does not exist yet, for one test."""
    return tmp_path / "artifacts"


@pytest.fixture
def make_settings(models_dir: Path, artifacts_dir: Path) -> Callable[..., Settings]:
    """Return a function that builds settings with the test's folders."""

    def make(**settings: object) -> Settings:
        folders = {"models_dir": models_dir, "artifacts_dir": artifacts_dir, "threads": 1}
        return load_settings(**{**folders, **settings})

    return make


@pytest.fixture
def make_client(make_settings: Callable[..., Settings]) -> Iterator[MakeClient]:
    """Return a function that opens a service on the test's folders, with given settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(open_client(make_settings(**settings)))


@pytest.fixture
def make_server(make_settings: Callable[..., Settings]) -> Iterator[MakeServer]:
    """Return a function that serves on a socket; it returns `http://127.0.0.1:<port>`."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(open_server(make_settings(**settings)))
