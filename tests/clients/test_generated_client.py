"""A client that openapi-python-client generates from the service's document on the spot."""

import importlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.clients.processes import ROOT, running, service

pytest.importorskip("openapi_python_client")

PACKAGE = "segcal_client"
OPTIONS = Path(__file__).with_name("openapi_client.yaml")
ADMIN = "x" * 8  # as `service` sets it
STREET = ROOT / "examples/street.jpg"


@dataclass(frozen=True)
class Generated:
    """The generated package and a client of the running service."""

    client: Any

    def module(self, name: str) -> ModuleType:
        """Import a module of the package."""
        return importlib.import_module(f"{PACKAGE}.{name}")

    def call(self, operation: str, *arguments: object, **options: object) -> Any:
        """Call an operation, `tag.operation_id`, and return its parsed response."""
        call = self.module(f"api.{operation}").sync
        return call(*arguments, client=self.client, **options)


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Iterator[Generated]:
    """Generate a client from the running service's document, which gives no warning."""
    folder = tmp_path_factory.mktemp("generated")
    with running(service(tmp_path_factory.mktemp("service"))) as started:
        command = [
            sys.executable, "-m", "openapi_python_client", "generate",
            "--url", f"{started.url}/openapi.json", "--config", str(OPTIONS),
            "--output-path", str(folder / PACKAGE), "--meta", "none", "--fail-on-warning",
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=120)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            package = importlib.import_module(PACKAGE)
            with package.AuthenticatedClient(started.url, ADMIN, timeout=120) as client:
                yield Generated(client)


def file_of(generated: Generated, path: Path) -> Any:
    """Return an image as the generated client uploads it."""
    return generated.module("types").File(io.BytesIO(path.read_bytes()), path.name, "image/jpeg")


@pytest.fixture(scope="module")
def segmented(generated) -> Any:
    """Return the response for the street, sent as a form."""
    body = generated.module("models").SegmentFilesBody(image=file_of(generated, STREET))
    return generated.call("segment.segment", body=body)


def test_segmentation_is_a_typed_object(generated, segmented):
    assert (segmented.width, segmented.height) == Image.open(STREET).size
    assert segmented.calibration.calibrator != "none"
    raw = generated.call("segment.segment", body=file_of(generated, STREET))
    assert raw.mean_confidence == segmented.mean_confidence


def test_images_of_a_result_are_bytes(generated, segmented):
    kinds = generated.module("models").GetResultImageImage
    for kind in kinds:
        found = generated.call("results.get_result_image", segmented.id, kind)
        assert Image.open(found.payload).size == (segmented.width, segmented.height)


def test_arrays_of_a_result_are_bytes(generated, segmented):
    found = generated.call("results.get_result_arrays", segmented.id)
    with np.load(found.payload) as arrays:
        assert arrays["mask"].shape == (segmented.height, segmented.width)
        assert arrays["confidence"].mean() == pytest.approx(segmented.mean_confidence, abs=1e-3)


def test_files_of_a_calibrator_are_bytes(generated, segmented):
    version = segmented.calibration.calibrator
    archive = generated.call("calibrators.download_calibrator", version)
    assert "manifest.json" in " ".join(zipfile.ZipFile(archive.payload).namelist())
    diagram = generated.call("calibrators.get_reliability_diagram", version)
    assert b"<svg" in diagram.payload.read()


def test_export_is_bytes(generated):
    found = generated.call("models.export_model", "nuclei", calibrator="none")
    assert b"segcal.certificate" in found.payload.read()


def test_errors_are_one_type(generated):
    problem = generated.module("models").Problem
    for operation, arguments in (
        ("results.get_result_arrays", ["gone"]),
        ("calibrators.get_calibrator", ["gone"]),
        ("calibration.get_job", ["gone"]),
    ):
        found = generated.call(operation, *arguments)
        assert isinstance(found, problem)
        assert found.status == 404
        assert found.detail.startswith("expected ")
