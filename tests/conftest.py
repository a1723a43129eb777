"""What the tests of the service share: a tiny real model behind a real application.

`client` is shared and only read from; a test that needs other settings or its own artefacts takes
`make_client`, one that needs sockets `make_server`.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
for _name in [name for name in os.environ if name.startswith("SEGCAL_")]:
    del os.environ[_name]  # the tests hold whatever the developer's shell says

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
    """`models/tiny` with three classes, and its calibrator of temperature 2, active."""
    root = tmp_path_factory.mktemp("service")
    model = write_onnx_model(root / "models", "tiny")
    publish_temperature(root / "artifacts", model, temperature=2)
    return root


@pytest.fixture(scope="session")
def client(shared_folder: Path) -> Iterator[TestClient]:
    """The service with the model `tiny` and its active calibrator; shared, so only read from it."""
    settings = load_settings(
        models_dir=shared_folder / "models", artifacts_dir=shared_folder / "artifacts", threads=1
    )
    with open_client(settings) as opened:
        yield opened


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A test's own models: `tiny` and whatever it adds."""
    write_onnx_model(tmp_path / "models", "tiny")
    return tmp_path / "models"


@pytest.fixture
def artifacts_dir(tmp_path: Path) -> Path:
    """A test's own artefacts, none at first."""
    return tmp_path / "artifacts"


@pytest.fixture
def make_settings(models_dir: Path, artifacts_dir: Path) -> Callable[..., Settings]:
    """Settings over the test's own folders."""

    def make(**settings: object) -> Settings:
        folders = {"models_dir": models_dir, "artifacts_dir": artifacts_dir, "threads": 1}
        return load_settings(**{**folders, **settings})

    return make


@pytest.fixture
def make_client(make_settings: Callable[..., Settings]) -> Iterator[MakeClient]:
    """Services over the test's own folders, with the settings it names."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(open_client(make_settings(**settings)))


@pytest.fixture
def make_server(make_settings: Callable[..., Settings]) -> Iterator[MakeServer]:
    """The same behind a real socket; gives the address, `http://127.0.0.1:<port>`."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(open_server(make_settings(**settings)))
