"""Label Studio's calls on the backend, sent over sockets as it sends them."""

import base64
import json

import httpx2
import numpy as np
import pytest
from PIL import Image

from app.imaging import decode_brush
from tests.factories.jobs import wait_for
from tests.factories.label_studio import CONFIG, TOKEN, open_label_studio
from tests.factories.models import write_onnx_model
from tests.factories.service import (
    BLUE,
    SATURATED_AT_2,
    THIRDS_MASK,
    assert_problem,
    decoded,
    encoded,
    post,
    publish_temperature,
    solid,
    thirds,
)


@pytest.fixture
def studio():
    with open_label_studio() as opened:
        yield opened


@pytest.fixture
def make_backend(make_server, studio):
    """Return a function that serves the backend of `studio`; it returns a client of its URL."""

    def make(**settings):
        url = make_server(labelstudio_url=studio.url, labelstudio_token=TOKEN, **settings)
        return httpx2.Client(base_url=url, timeout=60)

    return make


def ask(backend, *tasks, config=CONFIG, prefix="/labelstudio"):
    return backend.post(
        f"{prefix}/predict",
        json={
            "tasks": list(tasks),
            "project": "1.1700000000",
            "label_config": config,
            "params": {"login": "", "password": "", "context": None},
        },
    )


def drawn(regions, shape):
    """Draw the regions of a prediction on a mask; 255 where there is none."""
    mask = np.full(shape, 255)
    for region in regions:
        assert (region["original_height"], region["original_width"]) == shape
        label = region["value"]["brushlabels"][0].lower()
        mask[decode_brush(region["value"]["rle"], *shape)] = int(label.removeprefix("class-"))
    return mask


# Connecting and predicting


def test_a_project_connects(make_backend, models_dir, artifacts_dir):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    with make_backend() as backend:
        assert backend.get("/labelstudio/health").json() == {
            "status": "UP",
            "model_class": "segcal",
        }
        setup = {"project": "1.17", "schema": CONFIG, "hostname": "", "access_token": "x"}
        for schema in (CONFIG, "<View></View>"):
            answer = backend.post("/labelstudio/setup", json=setup | {"schema": schema})
            assert answer.json() == {"model_version": version}
        assert backend.get("/labelstudio/versions").json() == {"versions": [version]}
        other = CONFIG.replace("lass-", "ars-")
        assert_problem(
            backend.post("/labelstudio/setup", json=setup | {"schema": other}), 422, "class-0"
        )


def test_prediction_is_the_mask_without_uncertain_pixels(
    make_backend, studio, models_dir, artifacts_dir
):
    version = publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    image = thirds().copy()
    image[:, 8:] = 128  # grey: all classes are as likely, so that no region may have it
    sure = studio.add_task(7, encoded(solid((255, 0, 0))))
    unsure = studio.add_task(8, encoded(image))
    with make_backend(labelstudio_min_confidence=0.5) as backend:
        results = ask(backend, sure, unsure).json()["results"]

    assert [result["model_version"] for result in results] == [version] * 2
    assert results[0]["score"] == pytest.approx(SATURATED_AT_2, abs=1e-3)
    assert results[1]["score"] < results[0]["score"]  # ordered by score, it is labelled first
    assert (drawn(results[0]["result"], (8, 12)) == 0).all()
    mask = drawn(results[1]["result"], (8, 12))
    assert (mask[:, :6] == THIRDS_MASK[:, :6]).all()
    assert (mask[:, 10:] == 255).all()
    region = results[0]["result"][0]
    assert region["value"]["brushlabels"] == ["Class-0"]  # in the project's spelling
    del region["value"], region["id"]
    assert region == {
        "from_name": "kind", "to_name": "photo", "type": "brushlabels", "image_rotation": 0,
        "original_width": 12, "original_height": 8,
        "score": pytest.approx(SATURATED_AT_2, abs=1e-3),
    }  # fmt: skip


def test_prediction_is_the_mask_of_segment(make_backend, studio):
    task = studio.add_task(1, encoded(thirds()))
    with make_backend(labelstudio_min_confidence=0) as backend:
        body = ask(backend, task).json()["results"][0]
        assert body["model_version"] == "uncalibrated"
        answer = post(backend, thirds(), include="mask").json()
    mask = np.asarray(decoded(base64.b64decode(answer["mask"]["data"])))
    assert body["score"] == answer["mean_confidence"]
    assert (drawn(body["result"], (8, 12)) == mask).all()


def test_other_models_have_a_path_of_their_own(make_backend, studio, models_dir):
    write_onnx_model(models_dir, "second", num_classes=2)
    task = studio.add_task(1, encoded(solid((255, 0, 0))))
    with make_backend(default_model="tiny") as backend:
        config = CONFIG.replace('<Label value="class-1"/>', "")
        body = ask(backend, task, config=config, prefix="/labelstudio/second").json()
        assert (drawn(body["results"][0]["result"], (8, 12)) == 0).all()
        assert_problem(ask(backend, task, prefix="/labelstudio/third"), 404, "third")


def test_a_task_without_an_image_does_not_stop_the_others(make_backend, studio):
    good = studio.add_task(1, encoded(thirds()))
    missing = {"id": 2, "data": {"image": "/data/upload/1/2.png"}}
    other = {"id": 3, "data": {"text": "no image"}}
    broken = studio.add_task(4, b"no image")
    with make_backend(labelstudio_min_confidence=0) as backend:
        results = ask(backend, missing, good, other, broken).json()["results"]
        assert ["error" in result for result in results] == [True, False, True, True]
        assert "404" in results[0]["error"]
        assert_problem(ask(backend, missing, other), 404)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("<View", ("XML",)),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', ("document type",)),
        (CONFIG.replace("BrushLabels", "RectangleLabels"), ("BrushLabels",)),
        (CONFIG.replace("$image", "https://example.org/a.png"), ("BrushLabels",)),
    ],
)
def test_configurations_without_brush_labels_are_an_error(make_backend, studio, config, words):
    with make_backend() as backend:
        assert_problem(ask(backend, studio.add_task(1, b""), config=config), 422, *words)


# The hosts of images


def test_only_listed_hosts_are_read_and_the_token_goes_to_none_of_them(make_backend, studio):
    with open_label_studio() as images:
        images.files["/open/a.png"] = encoded(solid(BLUE))
        images.redirects["/open/away"] = f"{studio.url}/data/upload/1/9.png"
        images.redirects["/open/near"] = "/open/a.png"
        studio.add_task(9, encoded(solid(BLUE)))
        host = images.url.removeprefix("http://")
        with make_backend(labelstudio_hosts=(host,), labelstudio_min_confidence=0) as backend:
            for path in ("/open/a.png", "/open/near"):
                answer = ask(backend, {"data": {"image": images.url + path}})
                assert (drawn(answer.json()["results"][0]["result"], (8, 12)) == 2).all()
            away = ask(backend, {"data": {"image": f"{images.url}/open/away"}})
            assert_problem(away, 422, "redirect")
        assert {authorization for _, authorization in images.requests} == {""}
        assert studio.requests == []

        with make_backend() as backend:
            read = len(images.requests)
            answer = ask(backend, {"data": {"image": f"{images.url}/open/a.png"}})
            assert_problem(answer, 422, "SEGCAL_LABELSTUDIO_HOSTS")
            assert len(images.requests) == read


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "/api/projects/1/",  # of Label Studio, but no file
        "/data/../api/projects/1/",
        "/data/%2e%2e/api/projects/1/",
        "//127.0.0.1/data/upload/1/1.png",
        "http://[::1",
        "s3://bucket/a.png",
        "None",
    ],
)
def test_addresses_of_other_hosts_and_of_no_file_are_not_read(make_backend, studio, address):
    with make_backend() as backend:
        assert_problem(ask(backend, {"data": {"image": address}}), 422, "image")
        assert_problem(ask(backend, {"data": {"image": studio.url + address}}), 422, "image")
    assert studio.requests == []


def test_files_above_the_limit_are_an_error(make_backend, studio):
    task = studio.add_task(1, encoded(solid(BLUE)) + bytes(5000))
    with make_backend(max_upload_bytes=4000) as backend:
        assert_problem(ask(backend, task), 413, "4000 bytes")


# Tokens


def test_with_api_tokens_every_route_needs_one(make_backend, studio):
    basic = base64.b64encode(b"anyone:token-of-ls").decode()
    wrong = base64.b64encode(b"token-of-ls:wrong").decode()
    with make_backend(api_tokens=("token-of-ls",)) as backend:
        for headers, status in (
            ({"Authorization": f"Basic {basic}"}, 200),
            ({"Authorization": "Bearer token-of-ls"}, 200),
            ({"Authorization": f"Basic {wrong}"}, 401),
            ({"Authorization": "Basic ?"}, 401),
            ({}, 401),
        ):
            assert backend.get("/labelstudio/health", headers=headers).status_code == status
            event = {"action": "PROJECT_UPDATED"}
            answer = backend.post("/labelstudio/webhook", json=event, headers=headers)
            assert answer.status_code == status


# The webhook


def tell(backend, annotation, action="ANNOTATION_CREATED", **more):
    event = {"action": action, "annotation": {"id": annotation, "result": "ignored"}, **more}
    answer = backend.post("/labelstudio/webhook", json=event)
    assert answer.json() == {"queued": 1}


def noisy_scenes(count, seed=0):
    """Build images of coloured cells whose label differs from their colour in a third of them."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        cells = rng.integers(0, 3, (8, 8))
        labels = np.where(rng.random((8, 8)) < 0.35, rng.integers(0, 3, (8, 8)), cells)
        image = np.eye(3, dtype=np.uint8)[cells] * 255
        yield encoded(image.repeat(4, 0).repeat(4, 1)), labels.repeat(4, 0).repeat(4, 1)


def wait_for_job(backend):
    """Wait for the first job to end and return it."""

    def jobs():
        return backend.get("/calibrate").json()["jobs"]

    wait_for(lambda: bool(jobs()) and jobs()[0]["state"] == "succeeded", "a fit on annotations")
    (job,) = jobs()
    return job


def test_accepted_annotations_lead_to_a_better_calibrator(make_backend, studio, artifacts_dir):
    with make_backend(labelstudio_refit_images=30) as backend:
        for number, (image, labels) in enumerate(noisy_scenes(30)):
            studio.add_task(number, image)
            tell(backend, studio.annotate(number, labels))
        job = wait_for_job(backend)
        assert job["activated"], job["report"]["decision"]
        assert job["note"] == "30 images labelled in Label Studio"
        # The next prediction has the new version.
        answer = ask(backend, studio.tasks[0]).json()
        assert answer["results"][0]["model_version"] == job["calibrator"]


def test_annotations_of_other_images_activate_nothing(make_backend, studio):
    scenes = list(noisy_scenes(30))
    with make_backend(labelstudio_refit_images=30) as backend:
        for number, (image, _) in enumerate(scenes):
            studio.add_task(number, image)
            tell(backend, studio.annotate(number, scenes[(number + 1) % 30][1]))
        job = wait_for_job(backend)
        assert not job["activated"]
        assert "on their own images" in json.dumps(job["report"]["decision"])


def test_an_event_adds_no_labels_of_its_own(make_backend, studio, artifacts_dir):
    """Skipped, unknown, of another size, without a class: none of them is collected."""
    image = encoded(thirds())
    studio.add_task(1, image)
    studio.add_task(2, image)
    studio.add_task(3, image)
    studio.add_task(4, image)
    kept = studio.annotate(1, THIRDS_MASK)
    ids = [
        studio.annotate(2, THIRDS_MASK, was_cancelled=True),
        studio.annotate(3, THIRDS_MASK[:, :6]),
        studio.annotate(4, THIRDS_MASK, result=[]),
        9999,
    ]
    collected = artifacts_dir / ".labelstudio" / "tiny"
    with make_backend() as backend:
        for number in (*ids, kept):
            tell(backend, number, task={"data": {"image": "http://127.0.0.1:1/"}})
        pending = collected / "pending"
        wait_for(lambda: not list(pending.iterdir()), "annotations to be read")
    assert [path.name for path in (collected / "images").iterdir()] == ["p1-t1.png"]
    labels = np.asarray(Image.open(collected / "labels" / "p1-t1.png"))
    assert (labels == THIRDS_MASK).all()


def test_an_updated_annotation_replaces_the_earlier_one(make_backend, studio, artifacts_dir):
    studio.add_task(1, encoded(thirds()))
    path = artifacts_dir / ".labelstudio" / "tiny" / "labels" / "p1-t1.png"
    with make_backend() as backend:
        tell(backend, studio.annotate(1, THIRDS_MASK))
        wait_for(path.exists, "an annotation")
        tell(backend, studio.annotate(1, 2 - THIRDS_MASK), "ANNOTATION_UPDATED")
        wait_for(
            lambda: path.exists() and (np.asarray(Image.open(path)) == 2 - THIRDS_MASK).all(),
            "the new labels",
        )


def test_annotations_wait_on_disk_until_label_studio_responds(
    make_server, studio, models_dir, artifacts_dir
):
    studio.add_task(1, encoded(thirds()))
    annotation = studio.annotate(1, THIRDS_MASK)
    answer, studio.answer = studio.answer, lambda *_: (503, b"", {})
    url = make_server(labelstudio_url=studio.url, labelstudio_token=TOKEN)
    with httpx2.Client(base_url=url, timeout=60) as backend:
        tell(backend, annotation)
        wait_for(lambda: len(studio.requests) > 0, "an attempt")
        studio.answer = answer
        labels = artifacts_dir / ".labelstudio" / "tiny" / "labels" / "p1-t1.png"
        wait_for(labels.exists, "an annotation")


def test_events_need_a_configured_label_studio(make_server):
    with httpx2.Client(base_url=make_server()) as backend:
        event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}}
        answer = backend.post("/labelstudio/webhook", json=event)
        assert_problem(answer, 409, "SEGCAL_LABELSTUDIO_URL")
        answer = backend.post("/labelstudio/webhook", json={"action": "PROJECT_UPDATED"})
        assert answer.json() == {"queued": 0}
