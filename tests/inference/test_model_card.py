import hashlib
from pathlib import Path
from typing import Any

import pytest

from app.errors import ModelError
from app.inference.model_card import (
    Card,
    InputPolicy,
    ModelFolder,
    OutputPolicy,
    ShortSide,
    default_name,
    read_model_folder,
)
from app.inference.taxonomies import TAXONOMIES
from tests.factories.models import write_card, write_onnx_model


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"some network")
    return folder


def error_message(folder: Path) -> str:
    with pytest.raises(ModelError) as raised:
        read_model_folder(folder)
    name, message = str(raised.value).split(": ", 1)
    assert name == folder.name
    return message


# Valid cards


def test_card_with_every_key_is_read(folder):
    write_card(
        folder,
        title="A title",
        license="MIT",
        source="here",
        mean=[0.5, 0.25, 0.0],
        std=[0.5, 1.0, 2.0],
        size={"short_side": 512},
        multiple_of=16,
        mode="whole",
        ignore_index=11,
        classes=[{"name": "sky", "color": "#8040ff"}, {"name": "road", "color": "#000001"}],
    )
    model = read_model_folder(folder)
    assert (model.card.name, model.card.title, model.card.license) == ("tiny", "A title", "MIT")
    assert model.card.input == InputPolicy(
        mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0), size=ShortSide(short_side=512), multiple_of=16
    )
    assert model.card.output.ignore_index == 11
    assert [entry.name for entry in model.card.output.classes] == ["sky", "road"]
    assert model.num_classes == 2
    assert model.palette == [(128, 64, 255), (0, 0, 1)]


def test_card_without_input_table_has_the_documented_defaults(folder):
    write_card(folder, multiple_of=None)
    assert read_model_folder(folder).card.input == InputPolicy(
        mean=(0, 0, 0), std=(1, 1, 1), size="native", multiple_of=32, mode="whole"
    )


def test_weights_sha256_is_that_of_the_model_file(folder):
    write_card(folder)
    model = read_model_folder(folder)
    assert model.path == folder / "model.onnx"
    assert model.weights_sha256 == hashlib.sha256(b"some network").hexdigest()


def test_sha256_is_that_of_weights_and_of_tables_by_hand(folder):
    write_card(folder, mean=[0.5, 0, 0.25], multiple_of=32, ignore_index=0)
    tables = (
        '{"input":{"mean":[0.5,0.0,0.25]},'
        '"output":{"classes":["class-0","class-1","class-2"],"ignore_index":0}}'
    )
    weights = hashlib.sha256(b"some network").hexdigest()
    expected = hashlib.sha256(f"{weights}\n{tables}".encode()).hexdigest()
    assert read_model_folder(folder).sha256 == expected


def sha256_with(folder: Path, **overrides: Any) -> str:
    write_card(folder, **overrides)
    return read_model_folder(folder).sha256


@pytest.mark.parametrize(
    "overrides",
    [
        {"mean": [0.5, 0.5, 0.5]},
        {"std": [0.5, 0.5, 0.5]},
        {"size": [64, 64]},
        {"size": {"short_side": 64}},
        {"multiple_of": 4},
        {"mode": "slide", "crop": [64, 64], "window_stride": [32, 32]},
        {"channels": "bgr"},
        {"resample": "area"},
        {"output_name": "logits"},
        {"activation": "softmax"},
        {"reduce_zero_label": True},
        {"ignore_index": 0},
        {"classes": [{"name": name, "color": "#000000"} for name in ("a", "b", "c")]},
    ],
)
def test_sha256_changes_with_what_shapes_logits_or_labels(folder, overrides):
    plain = sha256_with(folder)
    assert sha256_with(folder, **overrides) != plain
    assert sha256_with(folder) == plain


@pytest.mark.parametrize(
    "overrides",
    [
        {"title": "Other", "license": "MIT", "source": "there", "metrics": {"miou": 0.5}},
        {"default": True},
        {"mean": [0, 0, 0], "std": [1, 1, 1], "size": "native", "mode": "whole"},
        {"channels": "rgb", "resample": "bilinear", "fit": "stretch"},
        {"activation": "none", "reduce_zero_label": False, "ignore_index": 255},
        {"classes": [{"name": f"class-{k}", "color": "#ffffff"} for k in range(3)]},
    ],
)
def test_sha256_is_that_of_a_card_of_other_texts_colors_and_defaults(folder, overrides):
    assert sha256_with(folder, **overrides) == sha256_with(folder)


def test_sha256_does_not_depend_on_the_form_of_the_card(folder):
    plain = sha256_with(folder, mean=[0.5, 0.5, 0.5])
    lines = (folder / "card.toml").read_text().replace("0.5, 0.5, 0.5", "\n  5e-1,0.50,0.5 ")
    (folder / "card.toml").write_text("# a comment\n" + lines)
    assert read_model_folder(folder).sha256 == plain


def test_sha256_of_a_taxonomy_is_that_of_its_classes(folder):
    classes = [{"name": n, "color": c} for n, c in TAXONOMIES["camvid"].classes.items()]
    spelled = sha256_with(folder, classes=classes, ignore_index=11)
    assert sha256_with(folder, classes=None, taxonomy="camvid") == spelled


def test_taxonomy_defines_the_classes(folder):
    write_card(folder, classes=None, taxonomy="cityscapes")
    model = read_model_folder(folder)
    assert model.num_classes == 19
    assert (model.card.output.classes[0].name, model.palette[0]) == ("road", (128, 64, 128))
    assert (model.card.output.classes[18].name, model.palette[18]) == ("bicycle", (119, 11, 32))


def test_taxonomy_defines_void_labels_unless_the_card_does(folder):
    write_card(folder, classes=None, taxonomy="ade20k")
    output = read_model_folder(folder).card.output
    assert (output.ignore_index, output.reduce_zero_label) == (255, True)
    write_card(folder, classes=None, taxonomy="ade20k", reduce_zero_label=False, ignore_index=7)
    output = read_model_folder(folder).card.output
    assert (output.ignore_index, output.reduce_zero_label) == (7, False)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("native", "native"),
        ([512, 1024], (512, 1024)),
        ({"short_side": 7}, ShortSide(short_side=7)),
    ],
)
def test_size_takes_three_forms(folder, size, expected):
    write_card(folder, size=size)
    assert read_model_folder(folder).card.input.size == expected


@pytest.mark.parametrize("file", ["model.onnx", "model.pt", "model.pt2", "A-b_c.1.onnx"])
def test_file_of_known_ending_is_accepted(folder, file):
    (folder / file).write_bytes(b"some network")
    write_card(folder, file=file)
    assert read_model_folder(folder).path == folder / file


def test_slide_has_windows_of_a_size_at_a_stride(folder):
    write_card(folder, mode="slide", crop=[512, 1024], window_stride=[256, 512])
    policy = read_model_folder(folder).card.input
    assert (policy.crop, policy.stride, policy.blend) == ((512, 1024), (256, 512), "hann")


def test_model_with_many_classes_is_read(tmp_path):
    model = read_model_folder(write_onnx_model(tmp_path, "a", num_classes=300, stride=4))
    assert model.num_classes == 300
    assert model.card.input.multiple_of == 4


# Invalid cards and their error messages


def test_folder_without_card_is_rejected(folder):
    assert error_message(folder) == "expected a card.toml, got none"


def test_missing_folder_is_rejected(tmp_path):
    assert error_message(tmp_path / "gone") == "expected a card.toml, got none"


def test_card_that_is_no_toml_is_rejected(folder):
    (folder / "card.toml").write_text("name = ")
    assert error_message(folder).startswith("expected TOML in card.toml, got: Invalid value")


def test_card_that_is_no_text_is_rejected(folder):
    (folder / "card.toml").write_bytes(b"\xff\xfe")
    assert error_message(folder).startswith("expected TOML in card.toml, got: 'utf-8'")


def test_card_that_is_a_folder_is_rejected(folder):
    (folder / "card.toml").mkdir()
    assert error_message(folder).startswith("expected TOML in card.toml, got: ")


def test_name_of_another_folder_is_rejected(folder):
    write_card(folder, name="other")
    assert error_message(folder) == "expected the folder's name in card.toml, got 'other'"


def test_missing_model_file_is_rejected(folder):
    write_card(folder, file="gone.onnx")
    assert error_message(folder) == "expected the file gone.onnx, got none"


@pytest.mark.parametrize(
    "file",
    [
        "../tiny/model.onnx",
        "./model.onnx",
        "/etc/model.onnx",
        "a/model.onnx",
        "a\\model.onnx",
        ".onnx",
        "..onnx",
        "model.onnx\n",
        "model.onnx\x00.pt",
        "model.pth",
        "model",
        "",
    ],
)
def test_file_outside_the_folder_or_of_another_kind_is_rejected(folder, file):
    write_card(folder, file=file)
    assert error_message(folder).startswith("file: String should match pattern")


@pytest.mark.parametrize("name", ["../tiny", ".tiny", "", "a b", "a/b", "x" * 129])
def test_name_that_is_no_plain_word_is_rejected(folder, name):
    write_card(folder, name=name)
    assert error_message(folder).startswith("name: String should match pattern")


CROP_AND_STRIDE = 'input: expected crop = [H, W] and stride = [h, w] with mode = "slide"'
ONE_OF_THE_SIZES = 'expected "native", [H, W] or {short_side = N}, with sides in 1..16384'


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"file": None}, "file: expected a value, got none"),
        ({"colour": "red"}, "colour: expected no such key, got 'red'"),
        ({"title": 3}, "title: Input should be a valid string, got 3"),
        ({"mean": [0.5, 0.5]}, "input.mean.2: expected a value, got none"),
        (
            {"mean": [0.5, 0.5, "x"]},
            "input.mean.2: Input should be a valid number, unable to parse string as a number, "
            "got 'x'",
        ),
        ({"std": [1.0, 0.0, 1.0]}, "input: expected std above 0, got [1.0, 0.0, 1.0]"),
        (
            {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
            "input: expected mean and std on the 0..1 scale, mean = [0.485, 0.456, 0.406] and "
            "std = [0.229, 0.224, 0.225], got values on the 0..255 scale: "
            "[123.675, 116.28, 103.53] and [58.395, 57.12, 57.375]",
        ),
        (  # of Caffe's networks, whose input is the colour less the mean
            {"mean": [127.5, 127.5, 127.5]},
            "input: expected mean and std on the 0..1 scale, mean = [0.5, 0.5, 0.5] and "
            "std = [0.00392157, 0.00392157, 0.00392157], got values on the 0..255 scale: "
            "[127.5, 127.5, 127.5] and [1.0, 1.0, 1.0]",
        ),
        (
            {"mean": [0.5, 0.5, 0.5], "std": [127.5, 127.5, 127.5]},
            "input: expected mean and std on the 0..1 scale, mean = [0.5, 0.5, 0.5] and "
            "std = [0.5, 0.5, 0.5], got values on the 0..255 scale: "
            "[0.5, 0.5, 0.5] and [127.5, 127.5, 127.5]",
        ),
        (
            {"fit": "letterbox"},
            "input: expected size = [H, W] with fit = \"letterbox\", got 'native'",
        ),
        ({"size": "big"}, f"input.size: {ONE_OF_THE_SIZES}, got 'big'"),
        ({"size": [0, 5]}, f"input.size: {ONE_OF_THE_SIZES}, got [0, 5]"),
        ({"size": [9, 9, 3]}, f"input.size: {ONE_OF_THE_SIZES}, got [9, 9, 3]"),
        ({"size": {"short_side": 0}}, f"input.size: {ONE_OF_THE_SIZES}, got {{'short_side': 0}}"),
        ({"size": {"long_side": 9}}, f"input.size: {ONE_OF_THE_SIZES}, got {{'long_side': 9}}"),
        (
            {"multiple_of": 0},
            "input.multiple_of: Input should be greater than or equal to 1, got 0",
        ),
        ({"mode": "quilt"}, "input.mode: Input should be 'whole' or 'slide', got 'quilt'"),
        (
            {"crop": [64, 64]},
            'input: expected [\'crop\'] only with mode = "slide", got mode "whole"',
        ),
        ({"mode": "slide", "window_stride": [2, 2]}, f"{CROP_AND_STRIDE}, got no crop"),
        ({"mode": "slide", "crop": [64, 64]}, f"{CROP_AND_STRIDE}, got no stride"),
        (
            {"mode": "slide", "crop": [64, 32], "window_stride": [64, 64]},
            "input: expected a stride of at most the crop, got crop [64, 32] and stride [64, 64]",
        ),
        (
            {"mode": "slide", "crop": [64, 64], "window_stride": [32, 20], "multiple_of": 8},
            "input: expected crop and stride in multiples of multiple_of = 8, "
            "got crop [64, 64] and stride [32, 20]",
        ),
        (
            {"mode": "slide", "crop": [0, 64], "window_stride": [32, 32]},
            "input.crop.0: Input should be greater than or equal to 1, got 0",
        ),
        (
            {"mode": "slide", "crop": [64, 64], "window_stride": [32, 32], "blend": "max"},
            "input.blend: Input should be 'hann' or 'mean', got 'max'",
        ),
        (
            {"ignore_index": -1},
            "output.ignore_index: Input should be greater than or equal to 0, got -1",
        ),
        (
            {"classes": [{"name": "a", "color": "red"}]},
            "output.classes.0.color: String should match pattern '^#[0-9a-fA-F]{6}$', got 'red'",
        ),
        (
            {"classes": [{"name": "", "color": "#000000"}]},
            "output.classes.0.name: String should have at least 1 character, got ''",
        ),
        (
            {"classes": [{"name": name, "color": "#000000"} for name in ("a", "b", "a")]},
            "output: expected a name of its own for each class, got 'a' for classes 0 and 2",
        ),
        (
            {"activation": "relu"},
            "output.activation: Input should be 'none', 'softmax' or 'sigmoid', got 'relu'",
        ),
        ({"classes": [{"name": "a"}]}, "output.classes.0.color: expected a value, got none"),
        (
            {"classes": None},
            "output: expected either classes or a taxonomy, got both or neither",
        ),
        ({"classes": []}, "output: expected either classes or a taxonomy, got both or neither"),
        (
            {"taxonomy": "camvid"},
            "output: expected either classes or a taxonomy, got both or neither",
        ),
        (
            {"classes": None, "taxonomy": "zoo"},
            f"output: expected one of {sorted(TAXONOMIES)} as taxonomy, got 'zoo'",
        ),
        (
            {"classes": None, "taxonomy": ["camvid"]},
            f"output: expected one of {sorted(TAXONOMIES)} as taxonomy, got ['camvid']",
        ),
    ],
)
def test_wrong_value_is_rejected(folder, overrides, message):
    write_card(folder, **overrides)
    assert error_message(folder) == message


@pytest.mark.parametrize("table", ["input", "output"])
def test_table_that_is_no_table_is_rejected(folder, table):
    other = "[output]\ntaxonomy = 'camvid'" if table == "input" else ""
    (folder / "card.toml").write_text(f"name='tiny'\nfile='model.onnx'\n{table} = 3\n{other}")
    assert error_message(folder).startswith(f"{table}: Input should be a valid dictionary")


@pytest.mark.parametrize("line", ["mean = [nan, 0, 0]", "mean = [0, -inf, 0]", "std = [1, 1, inf]"])
def test_value_that_is_not_finite_is_rejected(folder, line):
    (folder / "card.toml").write_text(
        f"name='tiny'\nfile='model.onnx'\n[input]\n{line}\n[output]\ntaxonomy='camvid'"
    )
    assert "Input should be a finite number" in error_message(folder)


def test_sha256_covers_weights_beside_the_file(tmp_path: Path) -> None:
    folder = write_onnx_model(tmp_path, "tiny")
    alone = read_model_folder(folder).sha256
    (folder / "model.onnx.data").write_bytes(b"weights")
    first = read_model_folder(folder).sha256
    (folder / "model.onnx.data").write_bytes(b"other weights")
    assert len({alone, first, read_model_folder(folder).sha256}) == 3


# The default model


def folders(**defaults: bool) -> dict[str, ModelFolder]:
    output = OutputPolicy.model_validate({"taxonomy": "camvid"})
    return {
        name: ModelFolder(
            Card(name=name, file="model.onnx", output=output, default=default), Path(name), "0", "0"
        )
        for name, default in defaults.items()
    }


@pytest.mark.parametrize(
    ("cards", "configured", "expected"),
    [
        ({"a": False}, None, "a"),
        ({"a": False, "b": True}, None, "b"),
        ({"a": False, "b": True}, "a", "a"),
        ({"a": False, "b": False}, None, None),
        ({"a": True, "b": True}, None, None),
        ({}, None, None),
    ],
)
def test_default_is_configured_or_the_only_model_or_marked_by_a_card(cards, configured, expected):
    assert default_name(folders(**cards), configured) == expected
