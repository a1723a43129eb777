"""`hf:` imports of tiny networks of transformers with random weights, saved on the spot.

An import itself compares ONNX Runtime with torch and labels with the processor's own
postprocessing, and raises where they differ; the tests read off both and the card.
"""

import json
import string

import pytest
import torch

from app.conversion.extras import import_torchvision
from app.conversion.framework_import import import_framework
from app.conversion.framework_model import smooth_image
from app.conversion.hugging_face import open_hugging_face, read_policy
from app.conversion.mask_classifiers import MaskClassifier, mask_probabilities
from app.errors import ArgumentError, ModelError, SetupError
from app.inference.backbone import open_backbone
from app.inference.predictor import open_predictor
from tests.conversion.checks import check_import

try:
    transformers = import_torchvision("hf", "transformers")
except SetupError as error:
    pytest.skip(f"needs the extra hf (make importers): {error}", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and the exporter

NUM_CLASSES = 5
NAMES = [f"kind {index}" for index in range(NUM_CLASSES)]
LABELS = {"num_labels": NUM_CLASSES, "id2label": dict(enumerate(NAMES))}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SIZE = {"height": 64, "width": 96}
SQUARE = {"height": 64, "width": 64}
SMALL = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}


def swin():
    return transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_features=STAGES
    )


def segformer():
    config = transformers.SegformerConfig(
        **LABELS, **SMALL, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16
    )
    processor = transformers.SegformerImageProcessorPil(size=SIZE, do_reduce_labels=True)
    return transformers.SegformerForSemanticSegmentation(config), processor


def upernet(backbone, channels):
    config = transformers.UperNetConfig(
        **LABELS, backbone_config=backbone, hidden_size=16, auxiliary_channels=8,
        auxiliary_in_channels=channels,
    )  # fmt: skip
    processor = transformers.SegformerImageProcessorPil(size=SIZE)
    return transformers.UperNetForSemanticSegmentation(config), processor


def upernet_convnext():
    return upernet(transformers.ConvNextConfig(**SMALL, out_features=STAGES), 16)


def upernet_swin():
    return upernet(swin(), 32)


VIT = {
    "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip


def dpt():
    config = transformers.DPTConfig(
        **LABELS, **VIT, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False,
        neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
    )  # fmt: skip
    processor = transformers.DPTImageProcessorPil(size=SQUARE, resample=3)
    return transformers.DPTForSemanticSegmentation(config), processor


def beit():
    config = transformers.BeitConfig(
        **LABELS, **VIT, num_hidden_layers=4, out_indices=[1, 2, 3, 4], auxiliary_channels=8,
        use_relative_position_bias=True,
    )  # fmt: skip
    processor = transformers.BeitImageProcessorPil(
        size=SQUARE, crop_size=SQUARE, do_center_crop=False, do_reduce_labels=True
    )
    return transformers.BeitForSemanticSegmentation(config), processor


def mobilevit():
    config = transformers.MobileViTConfig(
        **LABELS, image_size=64, hidden_sizes=[16, 16, 24], num_attention_heads=2,
        neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32], aspp_out_channels=16, atrous_rates=[2, 3, 4],
    )  # fmt: skip
    processor = transformers.MobileViTImageProcessorPil(
        size={"shortest_edge": 72}, crop_size=SQUARE
    )
    return transformers.MobileViTForSemanticSegmentation(config), processor


def mobilenet():
    config = transformers.MobileNetV2Config(**LABELS, image_size=65, depth_multiplier=0.35)
    size = {"height": 65, "width": 65}
    processor = transformers.MobileNetV2ImageProcessorPil(size=size, do_center_crop=False)
    return transformers.MobileNetV2ForSemanticSegmentation(config), processor


DECODER = {
    "hidden_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32, "encoder_layers": 1,
    "num_attention_heads": 2, "num_queries": 6,
}  # fmt: skip


def mask2former():
    config = transformers.Mask2FormerConfig(
        **LABELS, **DECODER, backbone_config=swin(), feature_size=32, mask_feature_size=32,
        decoder_layers=2,
    )  # fmt: skip
    processor = transformers.Mask2FormerImageProcessorPil(size=SQUARE, size_divisor=32)
    return transformers.Mask2FormerForUniversalSegmentation(config), processor


def eomt_config(kind, **values):
    return kind(
        **LABELS, **VIT, **values, num_hidden_layers=3, num_queries=6,
        num_blocks=1, num_upscale_blocks=2, num_register_tokens=2,
    )  # fmt: skip


def eomt():
    network = transformers.EomtForUniversalSegmentation(eomt_config(transformers.EomtConfig))
    return network, eomt_processor(network)


def eomt_dinov3():
    network = transformers.EomtDinov3ForUniversalSegmentation(
        eomt_config(transformers.EomtDinov3Config)
    )
    return network, eomt_processor(network)


def eomt_processor(network):
    network.attn_mask_probs.zero_()
    return transformers.EomtImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": None}, do_split_image=True
    )


FAMILIES = (
    segformer, upernet_convnext, upernet_swin, dpt, beit, mobilevit, mobilenet, mask2former, eomt,
    eomt_dinov3,
)  # fmt: skip


def save(folder, network, processor):
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def check(path, settings):
    """Import a saved network; return its folder."""
    made = import_framework(open_hugging_face(path), "new", {}, settings)
    folder = check_import(made)
    assert [entry.name for entry in folder.card.output.classes] == NAMES
    predictor = open_predictor(folder, "cpu", 1)
    grid = predictor.grid(predictor.prepare_windows(smooth_image((150, 200))))
    assert grid.std(dim=(2, 3)).max() > 1e-3  # the comparison is of logits that vary
    return folder


@pytest.mark.parametrize("family", FAMILIES, ids=lambda function: function.__name__)
def test_family_is_imported_with_the_labels_of_its_framework(family, settings, tmp_path, randomize):
    network, processor = family()
    gain = 6 if family is mobilevit else 1  # its many narrow layers shrink what varies
    folder = check(save(tmp_path / "saved", randomize(network, gain=gain), processor), settings)
    policy = folder.card.input
    if family is segformer:
        assert (policy.size, folder.card.output.reduce_zero_label) == ((64, 96), True)
    if family is beit:
        assert (policy.mean, policy.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    if family is mobilevit:
        assert (policy.channels, policy.mean, policy.size) == ("bgr", (0, 0, 0), (64, 64))
    if family is eomt:
        assert (policy.mode, policy.crop) == ("slide", (64, 64))
        images = torch.rand(1, 3, 64, 64).numpy()
        outputs = open_backbone(folder.path, "cpu", 1).outputs(images)
        assert outputs["mass"].shape == (1, 1, 64, 64)
        assert folder.card.output.name == "logits"


def test_oneformer_is_imported_with_its_semantic_task(settings, tmp_path, randomize):
    config = transformers.OneFormerConfig(
        **LABELS, backbone_config=swin(), conv_dim=32, mask_dim=32, hidden_dim=32,
        encoder_feedforward_dim=32, dim_feedforward=32, encoder_layers=1, decoder_layers=3,
        num_attention_heads=2, num_queries=6, query_dec_layers=1, text_encoder_width=32,
        text_encoder_vocab_size=500, text_encoder_num_layers=1, is_training=False,
    )  # fmt: skip
    # With these weights some scores are near 1e-5, where a Sigmoid of ONNX Runtime is too coarse.
    network = randomize(transformers.OneFormerForUniversalSegmentation(config), seed=3)
    classes = {str(index): {"name": name, "isthing": 0} for index, name in enumerate(NAMES)}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    processor = transformers.OneFormerImageProcessorPil(
        size=SQUARE, repo_path=str(tmp_path), class_info_file="classes.json", num_text=2
    )
    letters = string.ascii_lowercase
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>"]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|endoftext|>"])}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path / "saved")
    check(save(tmp_path / "saved", network, processor), settings)


def test_masks_of_any_size_have_probabilities():
    masks = torch.tensor([-1000.0, -14.0, 0.0, 14.0, 1000.0])
    expected = torch.tensor([0.0, 8.3152803e-7, 0.5, 0.99999917, 1.0])
    torch.testing.assert_close(mask_probabilities(masks), expected, rtol=1e-6, atol=0)


class Queries(torch.nn.Module):
    """Two queries, three classes and "no object": class scores and masks by hand."""

    def forward(self, pixel_values):
        classes = torch.tensor([[0.5, 0.25, 0.0, 0.25], [0.0, 0.0, 0.125, 0.875]]).log()
        masks = torch.tensor([[0.5, 0.0], [0.5, 0.0]]).logit()[:, None]
        return transformers.modeling_outputs.ModelOutput(
            class_queries_logits=classes[None], masks_queries_logits=masks[None]
        )


def test_logits_of_queries_are_logarithms_of_scores_and_mass_is_their_sum():
    logits, mass = MaskClassifier(Queries(), None, None)(torch.zeros(1, 3, 1, 2))
    expected = torch.tensor([[0.25, 0.125, 0.0625], [1e-6, 1e-6, 1e-6]]).log()
    torch.testing.assert_close(logits[0, :, 0].T, expected)
    torch.testing.assert_close(mass[0, 0, 0], torch.tensor([0.4375, 0.0]))


def test_short_side_means_windows_only_for_networks_of_one_size():
    processor = transformers.EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": None})
    policy, notes = read_policy(processor, None)
    assert (policy["mode"], policy["crop"]) == ("slide", (64, 64))
    assert notes[0].startswith("windows of 64x64 are cut")
    policy, notes = read_policy(processor, None, any_size=True)
    assert policy["size"] == {"short_side": 64}
    assert "crop" not in policy
    assert not notes


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ({}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        # (2 x / 255 - 1) / 1 is (x / 255 - 0.5) / 0.5.
        (
            {"rescale_factor": 2 / 255, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
        ),
    ],
)
def test_mean_and_std_are_on_the_scale_of_the_card(values, mean, std):
    policy, _ = read_policy(transformers.SegformerImageProcessorPil(**values), None)
    assert (policy["mean"], policy["std"]) == (pytest.approx(mean), pytest.approx(std))


def test_network_that_draws_random_masks_is_rejected(tmp_path):
    network, processor = eomt()
    network.attn_mask_probs.fill_(0.5)
    path = save(tmp_path, network, processor)
    with pytest.raises(ModelError, match=r"expected attn_mask_probs of 0 .*, got \[0.5\]"):
        open_hugging_face(path)


def test_other_kinds_of_networks_are_rejected(tmp_path):
    _, processor = segformer()
    processor.save_pretrained(tmp_path)
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"expected one of .*'segformer'.*, got .* kind 'vit'"):
        open_hugging_face(str(tmp_path))


def test_folder_without_a_network_is_rejected(tmp_path):
    with pytest.raises(ArgumentError, match="expected a folder or an id of a network of transfor"):
        open_hugging_face(str(tmp_path))


def test_backbone_without_its_decoder_is_rejected(tmp_path):
    network, processor = segformer()
    path = save(tmp_path, network.segformer, processor)
    with pytest.raises(
        ArgumentError, match=r"expected the weights of a whole .*SemanticSegmentation"
    ):
        open_hugging_face(path)


def test_wrong_normalisation_is_refused_by_the_comparison(settings, tmp_path, randomize):
    network, processor = segformer()
    path = save(tmp_path / "saved", randomize(network), processor)
    card = {"input": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}}
    with pytest.raises(ModelError, match="expected the labels of the reference"):
        import_framework(open_hugging_face(path), "new", card, settings)
    assert list(settings.models_dir.iterdir()) == []
