"""Class names and colours of common datasets, by the name under which a card can select them."""

TAXONOMIES: dict[str, tuple[tuple[str, str], ...]] = {
    "nuclei": (("background", "#000000"), ("nucleus", "#4cc9f0"), ("border", "#f72585")),
    "crop-weed": (("soil", "#6b4226"), ("crop", "#38b000"), ("weed", "#d00000")),
    "cityscapes": (
        ("road", "#804080"), ("sidewalk", "#f423e8"), ("building", "#464646"),
        ("wall", "#66669c"), ("fence", "#be9999"), ("pole", "#999999"),
        ("traffic light", "#faaa1e"), ("traffic sign", "#dcdc00"), ("vegetation", "#6b8e23"),
        ("terrain", "#98fb98"), ("sky", "#4682b4"), ("person", "#dc143c"),
        ("rider", "#ff0000"), ("car", "#00008e"), ("truck", "#000046"),
        ("bus", "#003c64"), ("train", "#005064"), ("motorcycle", "#0000e6"),
        ("bicycle", "#770b20"),
    ),
    "camvid": (
        ("sky", "#808080"), ("building", "#800000"), ("pole", "#c0c080"), ("road", "#804080"),
        ("pavement", "#3c28de"), ("tree", "#808000"), ("sign symbol", "#c08080"),
        ("fence", "#404080"), ("car", "#400080"), ("pedestrian", "#404000"),
        ("bicyclist", "#0080c0"),
    ),
}  # fmt: skip
