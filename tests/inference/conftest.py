from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from app.inference.model_card import read_model_folder
from app.inference.predictor import Predictor, open_predictor
from tests.factories.models import write_card, write_onnx_model, write_torch_model

KINDS = ("onnx", "pt", "pt2")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> dict[str, Path]:
    """Folders of one network of three classes and stride 2, by kind of file."""
    models = tmp_path_factory.mktemp("models")
    return {
        "onnx": write_onnx_model(models, "onnx"),
        "pt": write_torch_model(models, "pt", "pt"),
        "pt2": write_torch_model(models, "pt2", "pt2"),
    }


@pytest.fixture
def tiny_predictor(tmp_path) -> Callable[..., Predictor]:
    """Open a tiny ONNX model written with given options."""

    def open_tiny(**options) -> Predictor:
        folder = write_onnx_model(tmp_path, "tiny", **options)
        return open_predictor(read_model_folder(folder), "cpu", 1)

    return open_tiny


@pytest.fixture
def graph_folder(tmp_path) -> Callable[..., Path]:
    """Write a model folder with an ONNX graph given in ONNX's text form."""

    def write(text: str, **card: object) -> Path:
        folder: Path = tmp_path / "graph"
        folder.mkdir()
        model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>\n' + text)
        onnx.save(model, folder / "model.onnx")
        write_card(folder, **{"num_classes": 3, "stride": 1, **card})  # type: ignore[arg-type]
        return folder

    return write
