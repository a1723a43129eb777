"""`deploy/kserve/inferenceservice.yaml` has the fields and types of KServe's own models.

The models of the packages `kserve` and `kubernetes` are generated from the schemas of KServe's
custom resource and of Kubernetes: names and types of all fields, without the ranges of numbers.
"""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

kserve = pytest.importorskip("kserve", reason="expected the packages of `make clients`")
kubernetes = pytest.importorskip("kubernetes")
yaml = pytest.importorskip("yaml")

MANIFEST = Path(__file__).parents[2] / "deploy" / "kserve" / "inferenceservice.yaml"
SCALARS = {"str": str, "int": int, "bool": bool}
# Enum of ScaleMetric in pkg/apis/serving/v1beta1/component.go of kserve/kserve.
SCALE_METRICS = ("cpu", "memory", "concurrency", "rps")


def validate(value: object, kind: str, path: str = "") -> None:
    """Raise ValueError unless a value has the fields and types of a model, by its name."""
    if kind == "object":  # an integer or a text, such as a port
        return
    if container := re.fullmatch(r"(list|dict)[\[(](?:str, )?(.+)[\])]", kind, re.IGNORECASE):
        expect(
            isinstance(value, list if container[1].lower() == "list" else dict), path, kind, value
        )
        items = enumerate(value) if isinstance(value, list) else value.items()  # type: ignore[attr-defined]
        for key, item in items:
            validate(item, container[2], f"{path}[{key}]")
    elif kind in SCALARS:
        expect(type(value) is SCALARS[kind], path, kind, value)
    else:
        expect(isinstance(value, dict), path, kind, value)
        assert isinstance(value, dict)
        model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind)
        kinds = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
        expect(value.keys() <= kinds.keys(), path, f"fields of {kind}", sorted(value))
        for key, item in value.items():
            validate(item, kinds[key], f"{path}.{key}")
        # The models reject an absent field that is required.
        model(**{name: value.get(key) for name, key in model.attribute_map.items()})


def expect(holds: bool, path: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{path}: expected {expected}, got {got!r}")


@pytest.fixture
def manifest() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(MANIFEST.read_text("utf-8"))
    return document


def test_manifest_has_the_fields_and_types_of_its_kind(manifest):
    assert manifest["apiVersion"] == kserve.constants.KSERVE_V1BETA1
    assert manifest["kind"] == kserve.constants.KSERVE_KIND_INFERENCESERVICE
    validate(manifest, "V1beta1InferenceService")


def test_predictor_fits_the_controller_s_own_validation(manifest):
    predictor = manifest["spec"]["predictor"]
    assert predictor["scaleMetric"] in SCALE_METRICS
    assert 0 <= predictor["minReplicas"] <= predictor["maxReplicas"]
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("minReplica",), 1),
        (("maxReplicas",), "4"),
        (("containers", 0, "readynessProbe"), {}),
        (("containers", 0, "env", 0, "name"), 1),
        (("containers", 0, "name"), None),
        (("volumes", 0, "persistentVolumeClaim"), {}),
    ],
)
def test_wrong_field_or_type_is_found(manifest, path, value):
    changed = deepcopy(manifest)
    target: Any = changed["spec"]["predictor"]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ValueError, match=r"expected|None"):
        validate(changed, "V1beta1InferenceService")
