"""`segcal models import FRAMEWORK:WHERE`: its options, and sources that are rejected."""

import importlib.util
import sys

import pytest

from app.cli import main as cli
from app.conversion.extras import import_torchvision
from app.errors import SetupError
from app.inference.model_card import read_model_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages and the exporter


@pytest.fixture
def run(monkeypatch, capsys, settings):
    """Run `segcal models import` in this process; return its exit code and output."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["segcal", "models", "import", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            sys.exit(cli.main())  # type: ignore[func-returns-value]
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("net.onnx",), "expected a file, or one of hf:, torchvision:, smp:, dino:, mmseg: with"),
        (("keras:net",), "expected a file, or one of hf:, torchvision:"),
        (("hf:",), "expected a name or path after hf:, got none"),
        (("hf:net", __file__), "expected net alone, which has weights, got"),
        (("hf:net", "--reference", __file__, __file__), "expected none of --card and --reference"),
    ],
)
def test_wrong_source_is_rejected(run, arguments, reason):
    code, output = run(*arguments, "--name", "new")
    assert code == 2
    assert reason in output


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("hf:net", "transformers", "hf"),
        ("torchvision:fcn_resnet50", "torchvision", "torchvision"),
        ("smp:net", "segmentation_models_pytorch", "smp"),
        ("dino:net", "transformers", "hf"),
        ("mmseg:net.py", "mmcv", "mmseg"),
    ],
)
def test_missing_package_is_named_with_its_extra(run, settings, source, package, extra):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    code, output = (
        run(source, __file__, "--name", "new") if extra == "mmseg" else run(source, "--name", "new")
    )
    assert code == 2
    assert f"expected the extra packages of `pip install segcal[{extra}]`, got: " in output
    assert list(settings.models_dir.iterdir()) == []


def test_options_complete_the_card_of_a_framework(run, settings, tmp_path, randomize):
    try:
        smp = import_torchvision("smp", "segmentation_models_pytorch")
    except SetupError as error:
        pytest.skip(f"needs the extra smp (make importers): {error}")
    network = smp.Unet("resnet18", encoder_weights=None, classes=3, decoder_channels=(8,) * 5)
    randomize(network).save_pretrained(tmp_path / "saved")
    options = ("--taxonomy", "nuclei", "--mean", 0.5, 0.5, 0.5, "--title", "Cells")
    code, output = run(f"smp:{tmp_path / 'saved'}", "--name", "cells", *options)
    assert code == 0, output
    assert "ONNX Runtime differs from torch by at most" in output
    assert "100.0000% of the labels agree" in output
    card = read_model_folder(settings.models_dir / "cells").card
    assert (card.title, card.input.mean, card.output.taxonomy) == ("Cells", (0.5,) * 3, "nuclei")
