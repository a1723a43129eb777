"""`mmseg:` imports of small networks of MMSegmentation with random weights, one of each kind."""

import inspect

import numpy as np
import pytest
import torch

from app.conversion.extras import import_extra
from app.conversion.framework_import import import_framework
from app.conversion.framework_model import smooth_image
from app.conversion.mmseg_networks import import_mmseg, open_mmseg
from app.conversion.plain_networks import Options
from app.errors import ArgumentError, ModelError, SetupError
from app.inference.taxonomies import TAXONOMIES
from tests.conversion.checks import check_import
from tests.factories.service import served_mask

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages older than their dependencies
NUM_CLASSES = 4
HEADER = """
default_scope = "mmseg"
norm = dict(type="SyncBN", requires_grad=True)
data_preprocessor = dict(
    type="SegDataPreProcessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=(64, 64))
test_pipeline = [dict(type="LoadAnnotations", reduce_zero_label=True)]
loss = dict(type="CrossEntropyLoss", use_sigmoid=False)
"""
SEGFORMER = """
backbone = dict(
    type="MixVisionTransformer", embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
    patch_sizes=[7, 3, 3, 3], sr_ratios=[8, 4, 2, 1], out_indices=(0, 1, 2, 3), mlp_ratio=2)
decode_head = dict(
    type="SegformerHead", in_channels=[8, 8, 16, 16], in_index=[0, 1, 2, 3], channels=16,
    num_classes=4, norm_cfg=norm, align_corners=False, loss_decode=loss)
test_cfg = dict(mode="whole")
"""
SEGMENTER = """
backbone = dict(
    type="VisionTransformer", img_size=(64, 64), patch_size=16, embed_dims=16, num_layers=2,
    num_heads=2, mlp_ratio=2, final_norm=True, with_cls_token=True, interpolate_mode="bicubic",
    norm_cfg=dict(type="LN", eps=1e-6))
decode_head = dict(
    type="SegmenterMaskTransformerHead", in_channels=16, channels=16, num_classes=4, num_layers=1,
    num_heads=2, embed_dims=16, loss_decode=loss)
test_cfg = dict(mode="slide", crop_size=(64, 64), stride=(48, 48))
"""
KNET = """
update = dict(
    type="KernelUpdateHead", num_classes=4, num_ffn_fcs=2, num_heads=2, num_mask_fcs=1,
    feedforward_channels=32, in_channels=16, out_channels=16, conv_kernel_size=1, with_ffn=True,
    feat_transform_cfg=dict(conv_cfg=dict(type="Conv2d"), act_cfg=None),
    kernel_updator_cfg=dict(
        type="KernelUpdator", in_channels=16, feat_channels=16, out_channels=16,
        act_cfg=dict(type="ReLU", inplace=True), norm_cfg=dict(type="LN")))
decode_head = dict(
    type="IterativeDecodeHead", num_stages=2, kernel_update_head=[update, update],
    kernel_generate_head=generate)
test_cfg = dict(mode="whole")
"""
KNET_DEEPLAB = f"""
backbone = dict(
    type="ResNetV1c", depth=18, base_channels=8, stem_channels=8, num_stages=4,
    out_indices=(0, 1, 2, 3), dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), norm_cfg=norm,
    contract_dilation=True)
generate = dict(
    type="ASPPHead", in_channels=64, in_index=3, channels=16, dilations=(1, 2, 3), num_classes=4,
    norm_cfg=norm, align_corners=False, loss_decode=loss)
{KNET}
"""
SWIN = """
backbone = dict(
    type="SwinTransformer", embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
    window_size=4, mlp_ratio=2, out_indices=(0, 1, 2, 3))
generate = dict(
    type="UPerHead", in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6),
    channels=16, num_classes=4, norm_cfg=norm, align_corners=False, loss_decode=loss)
"""
UPERNET_SWIN = f"""
{SWIN}
decode_head = generate
test_cfg = dict(mode="whole")
"""
UPERNET_CONVNEXT = """
custom_imports = dict(imports="mmpretrain.models", allow_failed_imports=False)
backbone = dict(
    type="mmpretrain.ConvNeXt", arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16]),
    out_indices=[0, 1, 2, 3], layer_scale_init_value=1.0, gap_before_final_norm=False,
    init_cfg=dict(type="Pretrained", checkpoint="no-such-file.pth", prefix="backbone."))
decode_head = dict(
    type="UPerHead", in_channels=[8, 8, 16, 16], in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6),
    channels=16, num_classes=4, norm_cfg=norm, align_corners=False, loss_decode=loss)
test_cfg = dict(mode="whole")
"""
MODEL = """
model = dict(
    type="EncoderDecoder", data_preprocessor=data_preprocessor, backbone=backbone,
    decode_head=decode_head, train_cfg=dict(), test_cfg=test_cfg)
"""
KINDS = {
    "segformer": SEGFORMER,
    "segmenter": SEGMENTER,
    "knet_deeplab": KNET_DEEPLAB,
    "knet_swin": f"{SWIN}\n{KNET}",
    "upernet_swin": UPERNET_SWIN,
    "upernet_convnext": UPERNET_CONVNEXT,
}
GAINS = {"segformer": 2, "knet_deeplab": 1.1}  # of weights, for several labels in an image


@pytest.fixture
def installed():
    try:
        import_mmseg()
    except SetupError as error:
        pytest.skip(f"needs the extra mmseg (make importers): {error}")


@pytest.fixture
def saved(installed, tmp_path, randomize):
    """Return a function that writes a configuration and a checkpoint of it."""

    def write(text, gain=1, **meta):
        from mmengine import Config
        from mmengine.model import revert_sync_batchnorm
        from mmengine.registry import init_default_scope
        from mmseg.registry import MODELS

        path = tmp_path / "network.py"
        path.write_text(HEADER + text + MODEL)
        init_default_scope("mmseg")
        torch.manual_seed(0)  # for biases
        network = revert_sync_batchnorm(MODELS.build(Config.fromfile(path).model))
        checkpoint = {"meta": meta, "state_dict": randomize(network, gain=gain).state_dict()}
        torch.save(checkpoint, tmp_path / "network.pth")
        return str(path), tmp_path / "network.pth"

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_imported_and_served_with_the_labels_of_mmseg(kind, settings, saved):
    names = ["sky", "road", "tree", "car"]
    path, weights = saved(KINDS[kind], GAINS.get(kind, 1), dataset_meta={"classes": names})
    model = open_mmseg(path, weights, Options())
    made = import_framework(model, "new", {}, settings)
    folder = check_import(made)
    card = folder.card
    assert [entry.name for entry in card.output.classes] == names
    assert card.output.reduce_zero_label
    assert card.input.mean == pytest.approx((0.485, 0.456, 0.406))
    assert card.input.std == pytest.approx((0.229, 0.224, 0.225))
    whole = kind == "segformer"
    assert (card.input.mode, card.input.crop) == (("whole", None) if whole else ("slide", (64, 64)))
    image = smooth_image((64, 64))
    labels = model.reference(image).argmax(0).numpy()
    assert len(np.unique(labels)) > 1
    assert (served_mask(settings, image) == labels).mean() >= 0.999


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("ade20k", "ADE20KDataset"),
        ("coco-stuff", "COCOStuffDataset"),
        ("cityscapes", "CityscapesDataset"),
        ("acdc", "CityscapesDataset"),
        ("bdd100k", "BDD100KDataset"),
        ("voc", "PascalVOCDataset"),
        ("pascal-context", "PascalContextDataset59"),
    ],
)
def test_taxonomy_has_the_names_and_colors_of_mmseg(name, dataset, installed):
    from mmseg.registry import DATASETS

    kind, taxonomy = DATASETS.get(dataset), TAXONOMIES[name]
    assert list(taxonomy.classes) == [title.strip() for title in kind.METAINFO["classes"]]
    colors = [f"#{bytes(color).hex()}" for color in kind.METAINFO["palette"]]
    assert list(taxonomy.classes.values()) == colors
    reduced = inspect.signature(kind).parameters.get("reduce_zero_label")
    assert taxonomy.reduce_zero_label == (reduced is not None and reduced.default)


def test_checkpoint_of_another_network_is_rejected(saved):
    _, weights = saved(SEGMENTER)
    path, _ = saved(SEGFORMER)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, weights)
    with pytest.raises(ArgumentError, match=r"expected the weights of network\.py in network\.pth"):
        open_mmseg(path, weights, Options())


def test_missing_checkpoint_and_operators_are_named(saved):
    path, _weights = saved(SEGFORMER)
    with pytest.raises(ArgumentError, match=r"expected a checkpoint after the configuration"):
        open_mmseg(path, None, Options())
    from mmcv.ops import CrissCrossAttention

    with pytest.raises(ModelError, match="without compiled operators of mmcv, got CrissCross"):
        CrissCrossAttention(8)


def test_missing_package_is_named_with_its_extra():
    with pytest.raises(SetupError, match=r"extra packages of `pip install segcal\[mmseg\]`"):
        import_extra("mmseg", "no_such_module_of_mmseg")
