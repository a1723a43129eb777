"""`segcal models import` and `segcal models quantize`: new models and rejected ones."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from app.cli import main as cli
from app.cli.models import split_images
from app.datasets.images import Pair
from app.errors import ArgumentError
from app.inference.model_card import read_model_folder
from app.inference.predictor import open_predictor
from tests.factories.models import expected_logits, onnx_network, write_card, write_torch_model

SIZE = (40, 56)


@pytest.fixture
def run(monkeypatch, capsys, models_dir):
    """Run `segcal models` in this process; return its exit code and output."""
    monkeypatch.setenv("SEGCAL_MODELS_DIR", str(models_dir))
    monkeypatch.setenv("SEGCAL_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["segcal", "models", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            sys.exit(cli.main())  # type: ignore[func-returns-value]
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    return call


def names(models_dir: Path) -> list[str]:
    return sorted(path.name for path in models_dir.iterdir())


# Import


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(onnx_network(), path)
    return path


def test_imported_model_has_the_card_of_its_arguments(run, source, models_dir):
    policy = ("--mean", 0.5, 0.25, 0, "--std", 1, 2, 0.5, "--multiple-of", 8)
    code, output = run("import", source, "--name", "new", "--classes", "sky, road,tree", *policy)
    assert code == 0, output
    model = read_model_folder(models_dir / "new")
    assert [entry.name for entry in model.card.output.classes] == ["sky", "road", "tree"]
    assert len(set(model.palette)) == 3
    assert (model.card.input.mean, model.card.input.std) == ((0.5, 0.25, 0), (1, 2, 0.5))
    assert (model.card.input.multiple_of, model.card.file) == (8, "net.onnx")
    assert model.path.read_bytes() == source.read_bytes()
    assert "new" in run("list")[1]


def test_imported_torchscript_has_the_given_card(run, tmp_path, models_dir):
    made = write_torch_model(tmp_path, "made", "pt")
    code, output = run("import", made / "model.pt", "--name", "new", "--card", made / "card.toml")
    assert code == 0, output
    assert read_model_folder(models_dir / "new").card.title == "Tiny made"


def test_every_value_of_a_card_is_imported(run, source, tmp_path, models_dir):
    (tmp_path / "made").mkdir()
    title = 'A "title" \\ of\ttext, größer'
    write_card(
        tmp_path / "made", title=title, mode="slide", crop=[16, 32], window_stride=[8, 8],
        size={"short_side": 64},
    )  # fmt: skip
    card = tmp_path / "made" / "card.toml"
    assert run("import", source, "--name", "new", "--card", card)[0] == 0
    model = read_model_folder(models_dir / "new")
    assert (model.card.title, model.card.name) == (title, "new")
    assert (model.card.input.mode, model.card.input.crop) == ("slide", (16, 32))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--name", "new", "--taxonomy", "camvid"), "expected logits [1,11,h,w], got [1, 3, 128"),
        (
            ("--name", "new", "--taxonomy", "zoo"),
            "expected one of ['acdc', 'ade20k', 'bdd100k', 'brats', 'camvid', ",
        ),
        (("--name", "new"), "expected one of --card, --classes and --taxonomy"),
        (("--name", "tiny", "--classes", "a,b,c"), "got tiny, which is a model already"),
        (("--name", "../new", "--classes", "a,b,c"), "expected a plain word as the model's name"),
        (("--name", "a b", "--classes", "a,b,c"), "name: String should match pattern"),
        (("--name", "new", "--classes", "a,b,c", "--std", 0, 1, 1), "expected std above 0, got"),
    ],
)
def test_rejected_model_leaves_no_files(run, source, models_dir, arguments, reason):
    before = names(models_dir), names(models_dir / "tiny")
    code, output = run("import", source, *arguments)
    assert code == 2
    assert reason in output
    assert (names(models_dir), names(models_dir / "tiny")) == before
    assert names(models_dir.parent) == ["models", "net.onnx"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no model", "expected a model that loads, got: "),
        ("Log(image)", "expected finite logits, got NaN or infinite ones"),
        ("Sub(image, image)", "expected logits, got the same for every class"),
    ],
)
def test_file_that_does_not_segment_is_rejected(run, tmp_path, models_dir, content, reason):
    path = tmp_path / "net.onnx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        graph = f"g (float[n,3,h,w] image) => (float[n,3,h,w] logits) {{ logits = {content} }}"
        header = '<ir_version: 8, opset_import: ["": 17]>\n'
        onnx.save(onnx.parser.parse_model(header + graph), path)
    arguments = ("--classes", "a,b,c", "--mean", 0.5, 0.5, 0.5)
    code, output = run("import", path, "--name", "new", *arguments)
    assert code == 2
    assert reason in output
    assert names(models_dir) == ["tiny"]


def save_graph(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>\n' + text), path)
    return path


def save_fixed(path: Path, height: int, width: int) -> Path:
    shape = f"1,3,{height},{width}"
    text = f"g (float[{shape}] image) => (float[{shape}] logits) {{ logits = Neg(image) }}"
    return save_graph(path, text)


CLASSES = ("--classes", "a,b,c")


def test_network_of_one_size_is_imported_with_that_size(run, tmp_path, models_dir):
    path = save_fixed(tmp_path / "net.onnx", 50, 64)
    code, output = run("import", path, "--name", "new", *CLASSES)
    assert code == 0, output
    assert "net.onnx takes 50x64 (height x width) only: images are resized to it; --mode" in output
    policy = read_model_folder(models_dir / "new").card.input
    assert (policy.size, policy.multiple_of) == ((50, 64), 2)


def test_network_of_one_size_is_imported_with_windows_of_it(run, tmp_path, models_dir):
    path = save_fixed(tmp_path / "net.onnx", 64, 128)
    code, output = run("import", path, "--name", "new", *CLASSES, "--mode", "slide")
    assert code == 0, output
    assert "net.onnx takes 64x128 (height x width) only: windows are cut; with --mode" in output
    policy = read_model_folder(models_dir / "new").card.input
    assert (policy.crop, policy.stride, policy.multiple_of) == ((64, 128), (32, 96), 32)


def test_another_size_than_the_networks_is_rejected_by_its_option(run, tmp_path, models_dir):
    path = save_fixed(tmp_path / "net.onnx", 64, 64)
    code, output = run("import", path, "--name", "new", *CLASSES, "--size", 32, 32)
    assert code == 2
    assert (
        "got one exported for [1,3,64,64] only: set size = [64, 64] in the card (--size 64 64)"
        in output
    )
    assert "takes" not in output.split("expected a model that takes")[0]
    assert names(models_dir) == ["tiny"]


def test_windows_of_a_dynamic_network_have_a_stride_by_default(run, source, models_dir):
    windows = ("--mode", "slide", "--crop", 64, 40, "--multiple-of", 8)
    assert run("import", source, "--name", "new", *CLASSES, *windows)[0] == 0
    assert read_model_folder(models_dir / "new").card.input.stride == (48, 24)


def test_every_option_is_written_to_the_card(run, tmp_path, models_dir):
    path = save_graph(
        tmp_path / "net.onnx",
        "g (float[n,3,h,w] image) => (float[n,3,h,w] aux, float[n,3,h,w] p)"
        "{ aux = Neg(image) p = Softmax<axis=1>(image) }",
    )
    policy = ("--size", 64, 96, "--fit", "letterbox", "--resample", "area", "--channels", "bgr")
    outputs = ("--output", "p", "--activation", "softmax", "--reduce-zero-label")
    code, output = run("import", path, "--name", "new", *CLASSES, *policy, *outputs)
    assert code == 0, output
    card = read_model_folder(models_dir / "new").card
    assert (card.input.size, card.input.fit) == ((64, 96), "letterbox")
    assert (card.input.resample, card.input.channels) == ("area", "bgr")
    assert (card.output.name, card.output.activation) == ("p", "softmax")
    assert card.output.reduce_zero_label


def test_huge_logits_are_imported_with_a_warning(run, source):
    code, output = run("import", source, "--name", "new", *CLASSES, "--std", 1e-6, 1e-6, 1e-6)
    assert code == 0
    assert "warning: expected logits of at most 10000, got 4e+06 for a trial image" in output


@pytest.mark.parametrize("ending", ["pth", "ckpt", "bin"])
def test_checkpoint_is_rejected_by_name(run, tmp_path, ending):
    path = tmp_path / f"net.{ending}"
    torch.save({"state_dict": {"kernel": torch.zeros(3)}}, path)
    code, output = run("import", path, "--name", "new", *CLASSES)
    assert code == 2
    assert (
        f"expected a file that ends in .onnx, .pt2, .pt, got net.{ending}, weights without their "
        "network (a state_dict): export the network with torch.onnx.export"
    ) in output


# Import with a reference

MEAN = ("--mean", 0.4, 0.4, 0.4)


@pytest.fixture
def reference(tmp_path):
    """Write an image, and compute its logits under MEAN."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    planes = ((image / 255 - 0.4).transpose(2, 0, 1)[None]).astype(np.float32)
    return tmp_path / "image.png", expected_logits(planes)[0].astype(np.float32)


@pytest.mark.parametrize("kind", ["npy", "pt", "batch of npy", "image size"])
def test_logits_that_agree_with_the_reference_are_imported(run, source, tmp_path, reference, kind):
    image, logits = reference
    path = tmp_path / ("logits.pt" if kind == "pt" else "logits.npy")
    if kind == "pt":
        torch.save(torch.from_numpy(logits), path)
    elif kind == "image size":
        tensor = torch.from_numpy(logits)[None]
        np.save(path, torch.nn.functional.interpolate(tensor, (64, 96), mode="bilinear").numpy())
    else:
        np.save(path, logits[None] if kind == "batch of npy" else logits)
    code, output = run(
        "import", source, "--name", "new", *CLASSES, *MEAN, "--reference", image, path
    )
    assert code == 0, output
    found = re.search(r"differ from the reference by at most (\S+); (\S+)% of the labels", output)
    assert found
    assert 0 <= float(found[1]) < 1e-5
    assert float(found[2]) == 100


def test_labels_that_differ_from_the_reference_are_rejected(
    run, source, tmp_path, models_dir, reference
):
    image, logits = reference
    path = tmp_path / "logits.npy"
    swapped = logits.copy()
    swapped[:, :, :4] = logits[::-1, :, :4]  # of 48 columns
    np.save(path, swapped)
    differing = (logits.argmax(0) != swapped.argmax(0)).mean()
    code, output = run(
        "import", source, "--name", "new", *CLASSES, *MEAN, "--reference", image, path
    )
    assert code == 2
    assert (
        f"labels of the reference for 99.9% of its pixels, got {1 - differing:.2%}, and" in output
    )
    assert f"differ by up to {np.abs(logits - swapped).max():.3g}: check mean, std" in output
    assert names(models_dir) == ["tiny"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((3, 8, 8), np.int64), "expected float logits [K,h,w], got torch.int64 [3, 8, 8]"),
        (np.zeros((3, 8), np.float32), "expected float logits [K,h,w], got torch.float32 [3, 8]"),
        (np.zeros((3, 0, 8), np.float32), "expected float logits [K,h,w], got torch.float32 [3, 0"),
        (np.full((3, 32, 48), 0.5, np.float32), "expected logits, got values in 0..1: save the"),
        (np.full((3, 8, 8), 5, np.float32), "expected logits [3, 32, 48], or of the image's size,"),
        (np.array([{}]), "expected logits in a .npy file, or a tensor in a .pt file, got"),
    ],
)
def test_reference_that_holds_no_logits_is_rejected(
    run, source, tmp_path, reference, values, reason
):
    np.save(tmp_path / "logits.npy", values)
    pair = ("--reference", reference[0], tmp_path / "logits.npy")
    code, output = run("import", source, "--name", "new", *CLASSES, *MEAN, *pair)
    assert code == 2
    assert f"--reference: {reason}" in output


def test_reference_of_a_softmax_network_is_compared_by_log_probabilities(run, tmp_path, reference):
    path = save_graph(
        tmp_path / "net.onnx",
        "g (float[n,3,h,w] image) => (float[n,3,h,w] p) { p = Softmax<axis=1>(image) }",
    )
    image = np.asarray(Image.open(reference[0])).transpose(2, 0, 1) / 255
    np.save(tmp_path / "logits.npy", (image + 7).astype(np.float32))
    pair = ("--reference", reference[0], tmp_path / "logits.npy")
    code, output = run("import", path, "--name", "new", *CLASSES, "--activation", "softmax", *pair)
    assert code == 0, output
    found = re.search(r"at most (\S+); 100.0000% of the labels agree", output)
    assert found
    assert float(found[1]) < 1e-5


# Quantize


def deep_network() -> onnx.ModelProto:
    """Build three convolutions at stride 2, of random weights and any height and width."""
    rng = np.random.default_rng(0)
    kernels = [
        rng.normal(0, (channels * side * side) ** -0.5, (out, channels, side, side))
        for out, channels, side in ((16, 3, 3), (16, 16, 3), (3, 16, 1))
    ]
    nodes = [
        helper.make_node("Conv", ["image", "k0"], ["a"], "first", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "k1"], ["c"], "middle", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("Conv", ["d", "k2"], ["e"], "last"),
        helper.make_node("Identity", ["e"], ["logits"], "end"),
    ]
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3, "y", "x"])],
        [numpy_helper.from_array(8 * k.astype(np.float32), f"k{i}") for i, k in enumerate(kernels)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.doc_string = "made on /some/machine"
    return model


@pytest.fixture
def image_folders(tmp_path):
    """Write eight images of smooth random colours, and random label maps."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        patches = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        patches.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(images / f"{index}.png")
        truth = rng.integers(0, 3, SIZE, dtype=np.uint8)
        Image.fromarray(truth).save(labels / f"{index}.png")
    return images, labels


@pytest.fixture
def deep(models_dir):
    folder = models_dir / "deep"
    folder.mkdir()
    onnx.save(deep_network(), folder / "model.onnx")
    write_card(folder, title="Deep", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25], source="here")
    return folder


@pytest.mark.parametrize("ranges", ["minmax", "entropy", "percentile"])
def test_int8_model_is_added_with_its_report(run, deep, image_folders, models_dir, ranges):
    images, labels = image_folders
    paths = ("--images", images, "--labels", labels)
    code, output = run("quantize", "--model", "deep", *paths, "--ranges", ranges)
    assert code == 0, output
    original, int8 = read_model_folder(deep), read_model_folder(models_dir / "deep-int8")
    assert int8.sha256 != original.sha256
    assert (int8.card.input, int8.card.output) == (original.card.input, original.card.output)
    assert int8.card.title == "Deep, int8"
    origin = f"here; int8 (static, QDQ, per channel, 7-bit weights; {ranges} over 4 images)"
    assert origin in int8.card.source
    assert original.sha256[:12] in int8.card.source
    report = json.loads((models_dir / "deep-int8" / "quantization.json").read_text())
    assert report["model_sha256"] == int8.sha256
    assert report["images"] == 4
    assert 0.9 < report["label_agreement"] <= 1
    assert abs(report["confidence_shift"]) <= report["confidence_shift_absolute"] < 0.05
    assert report["before"]["miou"] == pytest.approx(report["after"]["miou"], abs=0.05)
    assert report["milliseconds_before"] > 0
    assert int8.card.metrics["label_agreement"] == pytest.approx(
        report["label_agreement"], abs=1e-5
    )


def test_int8_logits_are_close_to_the_originals_at_any_size(run, deep, image_folders, models_dir):
    assert (
        run("quantize", "--model", "deep", "--images", image_folders[0], "--out", "small")[0] == 0
    )
    models = [
        open_predictor(read_model_folder(models_dir / n), "cpu", 1) for n in ("deep", "small")
    ]
    for side in (8, 64):
        image = Image.open(image_folders[0] / "0.png").convert("RGB").resize((side, side))
        original, int8 = (m.logits(m.prepare(np.asarray(image))[0]) for m in models)
        assert int8.shape == original.shape == (1, 3, side // 2, side // 2)
        assert 0 < (int8 - original).abs().mean() < 0.05 * original.abs().mean() + 0.05


def test_int8_file_has_int8_weights_float_logits_and_no_metadata(
    run, deep, image_folders, models_dir
):
    assert run("quantize", "--model", "deep", "--images", image_folders[0])[0] == 0
    path = models_dir / "deep-int8" / "model.onnx"
    graph = onnx.load(path).graph
    kinds = [weight.data_type for weight in graph.initializer if len(weight.dims) == 4]
    assert sorted(kinds) == sorted([TensorProto.INT8, TensorProto.INT8, TensorProto.FLOAT])
    largest = [
        np.abs(numpy_helper.to_array(weight).astype(int)).max()
        for weight in graph.initializer
        if weight.data_type == TensorProto.INT8 and len(weight.dims) == 4
    ]
    # Two products of a pair must fit into 16 bits, without VNNI they saturate.
    assert max(largest) == 64
    assert 2 * 255 * 64 < 2**15 < 2 * 255 * 127
    scales = {len(w.dims) and w.dims[0] for w in graph.initializer if w.name.endswith("_scale")}
    assert 16 in scales  # one for each output channel
    (last,) = (node for node in graph.node if node.name == "last")
    assert not last.input[1].endswith("DequantizeLinear_Output")
    content = path.read_bytes()
    for path_text in (str(models_dir.parent), "/some/machine", "/tmp", str(Path.home())):
        assert path_text.encode() not in content


def test_images_for_ranges_and_for_the_comparison_are_disjoint(image_folders):
    chosen, measured = split_images(image_folders[0], None, None, 2)
    odd = [f"{index}.png" for index in (1, 3, 5, 7)]
    assert chosen == [image_folders[0] / "0.png", image_folders[0] / "4.png"]
    assert measured == [image_folders[0] / name for name in odd]
    _, pairs = split_images(image_folders[0], None, image_folders[1], 99)
    assert pairs == [Pair(image_folders[0] / name, image_folders[1] / name) for name in odd]
    chosen, measured = split_images(image_folders[0], image_folders[1], None, 8)
    assert (len(chosen), len(measured)) == (8, 8)


def test_single_image_is_rejected_without_held_out_images(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match="--images: expected more images, got 1"):
        split_images(tmp_path, None, None, 8)


def test_missing_extra_packages_are_named_in_the_error(run, deep, image_folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, output = run("quantize", "--model", "deep", "--images", image_folders[0])
    assert code == 2
    assert "expected the extra packages of `pip install segcal[quantize]`" in output
    assert names(deep.parent) == ["deep", "tiny"]


def test_model_that_is_not_onnx_is_rejected(run, tmp_path, models_dir, image_folders):
    write_torch_model(models_dir, "script", "pt")
    code, output = run("quantize", "--model", "script", "--images", image_folders[0])
    assert code == 2
    assert "script: expected an ONNX file, got model.pt" in output
    assert names(models_dir) == ["script", "tiny"]
