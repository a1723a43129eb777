"""Read the brush labels of a Label Studio project from its labelling configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from app.errors import ArgumentError

MAX_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class BrushControl:
    """The tag of brush labels of a project: its name, its image, and the labels of classes.

    `variable` is the key of the image's address in the data of a task.
    """

    name: str
    image: str
    variable: str
    labels: dict[int, str]  # by class id, in the project's spelling

    def class_of(self, label: str) -> int | None:
        """Return the class of a label; None for a label of no class."""
        return next((index for index, name in self.labels.items() if name == label), None)


def read_control(document: str, classes: Sequence[str]) -> BrushControl:
    """Return the first tag of brush labels some of which are classes, in upper or lower case.

    Raises ArgumentError without such a tag and for a document that is no configuration.
    """
    root = _parse(document)
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    known = {name.casefold(): index for index, name in reversed(list(enumerate(classes)))}
    for tag in root.iter("BrushLabels"):
        labels = [label.get("alias") or label.get("value") or "" for label in tag.iter("Label")]
        by_class = {known[one.casefold()]: one for one in labels if one.casefold() in known}
        image, name = tag.get("toName"), tag.get("name")
        variable = images.get(image, "")
        if by_class and name and image and variable.startswith("$"):
            return BrushControl(name, image, variable[1:], by_class)
    raise ArgumentError(
        f"label_config: expected BrushLabels on an Image, with labels out of "
        f"{[name[:40] for name in classes[:20]]}, got none"
    )


def _parse(document: str) -> ET.Element:
    # Entities could expand to gigabytes; without a document type there are none to expand.
    if len(document) > MAX_CHARACTERS or "<!" in document.replace("<!--", ""):
        raise ArgumentError(
            f"label_config: expected at most {MAX_CHARACTERS} characters of XML without a "
            f"document type, got {len(document)} characters"
        )
    try:
        return ET.fromstring(document)  # noqa: S314 - see above
    except ET.ParseError as error:
        raise ArgumentError("label_config: expected XML, got other text") from error
