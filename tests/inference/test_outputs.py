"""Outputs of networks in every form are found, converted to logits, or rejected with a reason."""

import numpy as np
import pytest
import torch

from app.errors import ModelError
from app.inference.model_card import OutputPolicy, read_model_folder
from app.inference.outputs import LogitsOutput, find_logits
from app.inference.predictor import Predictor, open_predictor
from tests.factories.models import TorchNetwork, write_card

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PLANES = IMAGE.transpose(2, 0, 1) / 255  # of the tiny graphs' input
TWO_CLASSES = {"num_classes": 2}


def open_folder(folder) -> Predictor:
    return open_predictor(read_model_folder(folder), "cpu", 1)


def error_message(folder) -> str:
    with pytest.raises(ModelError) as raised:
        open_folder(folder)
    name, message = str(raised.value).split(": ", 1)
    assert name == "graph"
    return message


def logits_of(folder):
    predictor = open_folder(folder)
    return predictor.grid(predictor.prepare_windows(IMAGE))[0].numpy()


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=0)


# Probabilities

SOFTMAX = (
    "g (float[n,3,h,w] image) => (float[n,3,h,w] p)"
    "<float gain = {4}> { logits = Mul(image, gain) p = Softmax<axis=1>(logits) }"
)
SIGMOID = (
    "g (float[n,3,h,w] image) => (float[n,3,h,w] p)"
    "<float gain = {4}> { logits = Mul(image, gain) p = Sigmoid(logits) }"
)
# Two masks of probability 0.6, summed by class: the third class has none, and sums stay below one.
MASKS = (
    "g (float[n,3,h,w] image) => (float[n,3,h,w] p)"
    "<float[1,3,1,1] weight = {0.3, 0.6, 0.0}> { p = Mul(image, weight) }"
)
ADVICE = "export the network without its last activation, or set activation = "


@pytest.mark.parametrize(
    ("graph", "sums", "kind"),
    [
        (SOFTMAX, " that sum to one or below", "softmax"),
        (MASKS, " that sum to one or below", "softmax"),
        (SIGMOID, "", "sigmoid"),
    ],
    ids=["softmax", "masks", "sigmoid"],
)
def test_probabilities_without_activation_in_the_card_are_rejected(graph_folder, graph, sums, kind):
    assert error_message(graph_folder(graph)) == (
        f"expected logits, got values in 0..1{sums}, as of probabilities: {ADVICE}"
        f'"{kind}" in [output] of the card (--activation {kind})'
    )


def test_softmax_is_inverted_up_to_a_constant_for_each_pixel(graph_folder):
    logits = logits_of(graph_folder(SOFTMAX, activation="softmax"))
    assert np.allclose(softmax(logits), softmax(4 * PLANES), atol=1e-6)
    shift = logits - 4 * PLANES
    assert np.allclose(shift, shift[:1], atol=1e-4)


def test_sigmoid_is_inverted(graph_folder):
    logits = logits_of(graph_folder(SIGMOID, activation="sigmoid"))
    assert np.allclose(logits, 4 * PLANES, atol=1e-4)


def test_sums_of_masks_have_finite_logits(graph_folder):
    logits = logits_of(graph_folder(MASKS, activation="softmax"))
    assert np.allclose(np.exp(logits[1]), np.maximum(0.6 * PLANES[1], 1e-6), atol=1e-6)
    assert np.allclose(logits[2], np.log(1e-6))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_logits_under_a_card_with_activation_are_rejected(graph_folder, activation):
    folder = graph_folder(
        "g (float[n,3,h,w] image) => (float[n,3,h,w] y) { y = Neg(image) }", activation=activation
    )
    expected = (
        f'expected probabilities in 0..1, as activation = "{activation}" says, got values in '
    )
    assert error_message(folder).startswith(f"{expected}-1..")


def test_logits_that_leave_the_range_at_some_pixels_are_accepted(graph_folder):
    folder = graph_folder(
        "g (float[n,3,h,w] image) => (float[n,3,h,w] y) { y = Abs(image) }", mean=[0.5, 0.5, 0.5],
        std=[0.4, 0.4, 0.4],
    )  # fmt: skip
    assert logits_of(folder).max() > 1


# One channel for two classes


def test_one_channel_of_logits_is_the_log_odds_of_class_1(graph_folder):
    folder = graph_folder(
        "g (float[n,3,h,w] image) => (float[n,1,h,w] y) <float[1,3,1,1] k = {3, -3, 0}>"
        "{ y = Conv(image, k) }",
        **TWO_CLASSES,
    )
    logits = logits_of(folder)
    assert logits.shape == (2, 6, 8)
    assert (logits[0] == 0).all()
    assert np.allclose(logits[1], 3 * PLANES[0] - 3 * PLANES[1], atol=1e-5)


def test_one_channel_of_sigmoid_is_the_probability_of_class_1(graph_folder):
    graph = (
        "g (float[n,3,h,w] image) => (float[n,1,h,w] p) <float[1,3,1,1] k = {3, -3, 0}>"
        "{ y = Conv(image, k) p = Sigmoid(y) }"
    )
    folder = graph_folder(graph, activation="sigmoid", **TWO_CLASSES)
    probability = softmax(logits_of(folder))[1]
    assert np.allclose(probability, 1 / (1 + np.exp(3 * PLANES[1] - 3 * PLANES[0])), atol=1e-5)
    write_card(folder, stride=1, **TWO_CLASSES)
    assert error_message(folder).endswith(
        'set activation = "sigmoid" in [output] of the card (--activation sigmoid)'
    )
    write_card(folder, stride=1, activation="softmax", **TWO_CLASSES)
    assert error_message(folder) == (
        'expected activation = "sigmoid" or "none" for one channel, got "softmax"'
    )


def test_one_channel_for_three_classes_is_rejected(graph_folder):
    folder = graph_folder(
        "g (float[n,3,h,w] image) => (float[n,1,h,w] y) <float[1,3,1,1] k = {3, -3, 0}>"
        "{ y = Conv(image, k) }"
    )
    assert error_message(folder) == "expected logits [1,3,h,w], got [1, 1, 256, 320]"


# Several outputs

TWO_HEADS = (
    "g (float[n,3,h,w] image) => (float[n,3,h,w] auxiliary, float[n,3,h,w] main)"
    "{ auxiliary = Neg(image) main = Log(image) }"
)


def test_several_outputs_of_matching_shape_are_rejected_by_name(graph_folder):
    assert error_message(graph_folder(TWO_HEADS)) == (
        "expected output.name in the card, as several outputs have the shape of logits, "
        "got ['auxiliary', 'main']"
    )


def test_output_named_by_the_card_holds_the_logits(graph_folder):
    logits = logits_of(graph_folder(TWO_HEADS, output_name="auxiliary"))
    assert np.allclose(logits, -PLANES)


def test_unknown_output_name_is_rejected(graph_folder):
    assert error_message(graph_folder(TWO_HEADS, output_name="logits")) == (
        "expected output.name to be one of ['auxiliary', 'main'], got 'logits'"
    )


def test_only_output_of_matching_shape_holds_the_logits(graph_folder):
    folder = graph_folder(
        "g (float[n,3,h,w] image) => (float[n,1,h,w] mass, int64[n,1,h,w] labels, float[n,3,h,w] y)"
        "<float[1,3,1,1] k = {1, 1, 1}>"
        "{ mass = Conv(image, k) labels = ArgMax<axis=1>(image) y = Neg(image) }"
    )
    assert np.allclose(logits_of(folder), -PLANES)


def test_labels_are_no_logits(graph_folder):
    folder = graph_folder(
        "g (float[n,3,h,w] image) => (int64[n,1,h,w] labels) { labels = ArgMax<axis=1>(image) }"
    )
    assert error_message(folder) == "expected logits [1,3,h,w], got [1, 1, 256, 320] of int64"


def test_outputs_that_do_not_match_are_listed(graph_folder):
    folder = graph_folder(TWO_HEADS, num_classes=4)
    assert error_message(folder) == (
        "expected logits [1,4,h,w], got auxiliary [1, 3, 256, 320], main [1, 3, 256, 320]"
    )


def test_entry_out_of_torchvisions_outputs_holds_the_logits(tmp_path):
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = TorchNetwork()

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.network(images)
            return {"aux": logits - 1, "out": logits}

    folder = tmp_path / "graph"
    folder.mkdir()
    program = torch.export.export(Wrapped(), (torch.zeros(1, 3, 6, 8),))
    torch.export.save(program, folder / "model.pt2")
    write_card(folder, file="model.pt2", size=[6, 8])
    cells = PLANES.reshape(3, 3, 2, 4, 2).mean(axis=(2, 4))
    assert np.allclose(logits_of(folder), 4 * cells, atol=1e-5)


# Layouts


def test_channels_last_are_moved(graph_folder):
    folder = graph_folder(
        "g (float[n,3,h,w] image) => (float[n,h,w,3] y)"
        "{ z = Neg(image) y = Transpose<perm = [0, 2, 3, 1]>(z) }"
    )
    assert np.allclose(logits_of(folder), -PLANES)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 4, 32, 40), False),
        ((1, 32, 40, 4), True),
        ((1, 40, 32, 40), False),  # both sides are the number of classes: the aspect decides
        ((1, 32, 40, 32), True),
        ((1, 40, 40, 40), False),
    ],
)
def test_layout_is_that_of_the_classes_and_the_aspect_ratio(shape, expected):
    num_classes = 4 if 4 in shape else shape[1]
    classes = [{"name": str(k), "color": "#000000"} for k in range(num_classes)]
    policy = OutputPolicy.model_validate({"classes": classes})
    outputs = {"y": np.zeros(shape, np.float32)}
    found = find_logits(outputs, num_classes, policy, (256, 320))
    assert found == LogitsOutput("y", expected, one_channel=False, activation="none")


def test_half_precision_output_is_single_precision(graph_folder):
    folder = graph_folder(
        "g (float[n,3,h,w] image) => (float16[n,3,h,w] y) { z = Neg(image) y = Cast<to = 10>(z) }"
    )
    logits = logits_of(folder)
    assert logits.dtype == np.float32
    assert np.allclose(logits, -PLANES, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_network_of_a_fixed_batch_takes_any_number_of_images(graph_folder, batch):
    folder = graph_folder(
        f"g (float[{batch},3,h,w] image) => (float[{batch},3,h,w] y) {{ y = Neg(image) }}"
    )
    images = torch.rand(4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    predictor = open_folder(folder)
    for count in (1, 2, 4):
        assert torch.equal(predictor.logits(images[:count]), -images[:count])


# Magnitude


def test_logits_of_a_million_are_warned_about(graph_folder):
    folder = graph_folder(
        "g (float[n,3,h,w] image) => (float[n,3,h,w] y) <float gain = {1000000}>"
        "{ y = Mul(image, gain) }"
    )
    (warning,) = open_folder(folder).warnings
    assert warning.startswith("expected logits of at most 10000, got 1e+06 for a trial image")


def test_logits_of_common_size_are_not_warned_about(tiny_folders):
    assert open_folder(tiny_folders["onnx"]).warnings == ()
