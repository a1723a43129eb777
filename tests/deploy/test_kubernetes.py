"""The files in `deploy/kubernetes` have Kubernetes' schema and fit the service."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings, load_settings

REASON = "expected kubernetes-validate: pip install -e '.[dev]'"
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason=REASON)
yaml = pytest.importorskip("yaml", reason=REASON)

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
VERSIONS = ("1.30", "1.34")
# Of a predictor; all others are those of a pod, whose schema the Deployment is checked with.
KSERVE_FIELDS = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout")


def read(name: str) -> dict[str, Any]:
    (document,) = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / name).read_text("utf-8"))
    result: dict[str, Any] = document
    return result


@pytest.fixture
def pod() -> dict[str, Any]:
    result: dict[str, Any] = read("deployment.yaml")["spec"]["template"]["spec"]
    return result


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_has_the_schema_of_its_kind(path, version):
    kubernetes_validate.validate(read(path.name), version, strict=True)


def test_misspelt_key_does_not_have_the_schema(pod):
    deployment = read("deployment.yaml")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


def test_variables_are_settings_and_their_secrets_exist(pod):
    (container,) = pod["containers"]
    names = {variable["name"] for variable in container["env"]} - {"TMPDIR"}
    assert names <= {f"SEGCAL_{field.upper()}" for field in Settings.model_fields}
    secret = read("secret.yaml")
    references = [
        variable["valueFrom"]["secretKeyRef"]
        for variable in container["env"]
        if "valueFrom" in variable
    ]
    assert {each["name"] for each in references} == {secret["metadata"]["name"]}
    assert {each["key"] for each in references} == set(secret["stringData"])
    assert set(secret["stringData"].values()) == {""}  # none that everybody knows


def test_pod_ends_after_the_service_and_is_probed_at_its_paths(pod):
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > load_settings().shutdown_timeout_s
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_pod_is_unprivileged_and_writes_to_volumes_only(pod):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["containers"], *pod["initContainers"]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    names = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == names
    (claim,) = (v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v)
    assert claim["claimName"] == read("volume.yaml")["metadata"]["name"]


def test_init_container_adds_calibrators_and_replaces_none(pod, tmp_path: Path):
    (container,) = pod["initContainers"]
    folders = {"/srv/calibration_artifacts/.": "image", "/artifacts/": "volume"}
    for folder, names in (("image", ("old", "new")), ("volume", ("old",))):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / "active").write_text(folder)
    words = [
        f"{tmp_path / folders[word]}/{word[-1]}" if word in folders else word
        for word in container["command"]
    ]
    assert len([word for word in words if str(tmp_path) in word]) == 2
    subprocess.run(words, check=True)
    found = {path.parent.name: path.read_text() for path in (tmp_path / "volume").glob("*/active")}
    assert found == {"old": "volume", "new": "image"}


def test_one_replica_keeps_its_clients():
    kinds = {read(path.name)["kind"] for path in FILES}
    assert "HorizontalPodAutoscaler" not in kinds
    assert read("deployment.yaml")["spec"]["replicas"] == 1
    assert read("service.yaml")["spec"]["sessionAffinity"] == "ClientIP"


def test_service_selects_the_pods():
    selector = read("service.yaml")["spec"]["selector"]
    labels = read("deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()


def test_predictor_of_kserve_is_the_deployment_s_pod(pod):
    path = ROOT / "deploy" / "kserve" / "inferenceservice.yaml"
    predictor = yaml.safe_load(path.read_text("utf-8"))["spec"]["predictor"]
    own = {name: predictor.pop(name) for name in KSERVE_FIELDS}
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"
    assert own["timeout"] > load_settings().request_timeout_s

    # With the name that KServe looks for, and else in nothing.
    pod["containers"][0]["name"] = "kserve-container"
    assert predictor == pod
