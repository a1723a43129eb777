"""The real Label Studio with this service as its backend; `make clients` runs it."""

import base64
import io
import json
import subprocess
from urllib.request import Request, urlopen
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

brush = pytest.importorskip("label_studio_sdk.converter.brush")

from label_studio_sdk.label_interface import LabelInterface  # noqa: E402

from tests.clients.images import shifted_nuclei  # noqa: E402
from tests.clients.services import (  # noqa: E402
    LABEL_STUDIO_TOKEN,
    ROOT,
    SERVICE_PYTHON,
    call,
    run_label_studio,
    serve_nuclei,
    wait_until,
)

IMAGES = 60
TOKEN = f"Token {LABEL_STUDIO_TOKEN}"
API_TOKEN = "of-label-studio"
CLASSES = ("background", "nucleus", "border")
CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    + "".join(f'<Label value="{name}"/>' for name in CLASSES)
    + "</BrushLabels></View>"
)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    with run_label_studio(tmp_path_factory.mktemp("label-studio")) as url:
        yield url


@pytest.fixture
def backend(studio, tmp_path):
    """Serve nuclei with Label Studio configured and an API token."""
    with serve_nuclei(
        tmp_path / "service",
        labelstudio_url=studio,
        labelstudio_token=LABEL_STUDIO_TOKEN,
        labelstudio_refit_images=str(IMAGES),
        api_tokens=API_TOKEN,
    ) as url:
        yield url


def new_project(studio):
    """Create a project of brush labels; return its id."""
    body = {"title": "nuclei", "label_config": CONFIG}
    return call(f"{studio}/api/projects/", body, TOKEN)["id"]


def connect(studio, project, backend):
    """Connect a backend by its address alone, with the API token as password in it."""
    address = backend.replace("http://", f"http://segcal:{API_TOKEN}@")
    body = {"url": f"{address}/labelstudio", "project": project, "title": "segcal"}
    return call(f"{studio}/api/ml/", body, TOKEN)


def upload(studio, project, images):
    """Upload images as files; return the ids of their tasks in the images' order."""
    edge = uuid4().hex
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="f{n}"; filename="n{n:03d}.png"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + image
        + b"\r\n"
        for n, (image, _) in enumerate(images)
    ]
    headers = {"Authorization": TOKEN, "Content-Type": f"multipart/form-data; boundary={edge}"}
    data = b"".join(parts) + f"--{edge}--\r\n".encode()
    with urlopen(Request(f"{studio}/api/projects/{project}/import", data, headers), timeout=300):
        pass
    tasks = call(f"{studio}/api/tasks?project={project}&page_size=1000", token=TOKEN)["tasks"]
    by_name = sorted(tasks, key=lambda task: task["data"]["image"].rpartition("-n")[2])
    assert len(by_name) == len(images)
    return [task["id"] for task in by_name]


def label(studio, task, labels):
    """Save an annotation that paints all classes, as the page does."""
    result = [
        {
            "id": f"r{k}", "type": "brushlabels", "from_name": "tag", "to_name": "image",
            "original_width": labels.shape[1], "original_height": labels.shape[0],
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": brush.mask2rle((labels == k).astype(np.uint8) * 255),
                "brushlabels": [name],
            },
        }
        for k, name in enumerate(CLASSES)
    ]  # fmt: skip
    call(f"{studio}/api/tasks/{task}/annotations/", {"result": result}, TOKEN)


def finished_job(backend):
    """Wait for the fit that the annotations started; return the job."""

    def job():
        jobs = call(f"{backend}/calibrate", token=f"Bearer {API_TOKEN}")["jobs"]
        return next((one for one in jobs if one["state"] not in ("queued", "running")), None)

    found = wait_until(job, "a fit on annotations")
    assert found["state"] == "succeeded", found
    return found


def test_predictions_are_the_masks_of_the_service(studio, backend):
    images = shifted_nuclei(20)
    project = new_project(studio)
    tasks = upload(studio, project, images)
    assert connect(studio, project, backend)["readable_state"] == "Connected"
    items = {"selectedItems": {"all": True, "excluded": []}}
    action = f"{studio}/api/dm/actions?id=retrieve_tasks_predictions&project={project}"
    call(action, items, TOKEN)
    for task, (image, _) in zip(tasks, images, strict=True):
        (prediction,) = wait_until(
            lambda task=task: call(f"{studio}/api/predictions?task={task}", token=TOKEN),
            "a prediction",
        )
        query = "include=mask&min_confidence=0.9"
        answer = call(f"{backend}/segment?{query}", image, f"Bearer {API_TOKEN}")
        assert prediction["model_version"] == answer["calibration"]["calibrator"]
        assert prediction["score"] == pytest.approx(answer["mean_confidence"])
        assert LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []
        expected = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]["data"]))))
        drawn = np.full(expected.shape, 255)
        for region in prediction["result"]:
            value = region["value"]
            alpha = brush.decode_rle(value["rle"]).reshape(*expected.shape, 4)[:, :, 3]
            drawn[alpha > 0] = CLASSES.index(value["brushlabels"][0])
        assert np.array_equal(drawn, expected)
        assert (expected == 255).any()  # left open for people


def test_labelling_shifted_images_activates_a_version(studio, backend):
    images = shifted_nuclei(IMAGES)
    project = new_project(studio)
    tasks = upload(studio, project, images)
    before = connect(studio, project, backend)["model_version"]
    for task, (_, labels) in zip(tasks, images, strict=True):
        label(studio, task, labels)
    job = finished_job(backend)
    assert job["activated"], json.dumps(job["report"]["decision"])
    assert job["calibrator"] != before
    assert job["note"] == f"{IMAGES} images labelled in Label Studio"


def test_permuted_labels_activate_nothing(studio, backend):
    images = shifted_nuclei(IMAGES)
    project = new_project(studio)
    tasks = upload(studio, project, images)
    connect(studio, project, backend)
    order = np.random.default_rng(1).permutation(IMAGES)
    for task, other in zip(tasks, order, strict=True):
        label(studio, task, images[other][1])
    job = finished_job(backend)
    assert not job["activated"], json.dumps(job["report"]["decision"])


def test_our_run_lengths_are_those_of_label_studio(tmp_path):
    """Encode in the service's environment, and compare with Label Studio's own encoder."""
    rng = np.random.default_rng(0)
    masks = [rng.random((int(h), int(w))) < 0.3 for h, w in rng.integers(1, 40, (6, 2))]
    masks.append(np.ones((300, 300), bool))  # runs above 2^16
    np.savez(tmp_path / "masks.npz", *masks)
    code = (
        "import json, sys, numpy as np; from app.imaging import encode_brush; "
        "print(json.dumps([encode_brush(m) for m in np.load(sys.argv[1]).values()]))"
    )
    command = [SERVICE_PYTHON, "-c", code, str(tmp_path / "masks.npz")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for mask, encoded in zip(masks, json.loads(done.stdout), strict=True):
        assert encoded == brush.mask2rle(mask.astype(np.uint8) * 255)
