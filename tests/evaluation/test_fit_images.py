"""Images that the calibrator's fit has read are recognised by the content of their files."""

from app.datasets.images import content_hash, find_pairs
from app.datasets.stored_logits import CachedLogits
from app.evaluation.evaluate import LocalModel, Options, evaluate_model
from app.evaluation.fit_images import FitImages, SharedImages
from app.inference.model_card import read_model_folder
from app.inference.predictor import open_predictor
from app.recalibration import calibrate
from app.schemas.fit import FitOptions
from app.storage.artifacts import ArtifactStore
from tests.evaluation.test_evaluate import write_set
from tests.factories.models import write_onnx_model
from tests.factories.service import thirds

REPORT = {"image_hashes": {"fit": ["a", "b"], "select": ["c"], "held_out": ["c", "d"]}}


def test_images_are_counted_by_role_and_each_once_in_all():
    images = FitImages.recorded(REPORT)
    assert images is not None
    assert images.shared(["b", "c", "c", "x"]) == SharedImages(3, fit=1, select=2, held_out=2)
    assert images.shared(["x"]) == SharedImages(0, 0, 0, 0)


def test_a_fit_from_logits_or_by_an_older_version_records_none():
    assert FitImages.recorded({"image_hashes": None}) is None
    assert FitImages.recorded({}) is None


def test_hash_is_of_the_content_alone(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"abc")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b") == "ba7816bf8f01cfea"


def test_evaluation_counts_the_images_of_a_real_fit(tmp_path):
    """Twelve images are fitted on; three of them under other names, and a new one, evaluated."""
    known = {f"image{n:02}": (thirds() // (n + 1), [[0, 1, 1, 2] * 3] * 8) for n in range(12)}
    pairs = write_set(tmp_path, **known)
    folder = read_model_folder(write_onnx_model(tmp_path / "models", "tiny"))
    predictor = open_predictor(folder, "cpu", 1)
    store = ArtifactStore(tmp_path / "artifacts")
    data = CachedLogits(predictor, pairs, 255, 10_000, lambda *_: None)
    published = calibrate(folder, data, store, FitOptions(method="temperature", activate="never"))

    hashes = published.report["image_hashes"]
    assert isinstance(hashes, dict)
    assert [len(hashes[role]) for role in ("fit", "select", "held_out")] == [6, 0, 6]
    assert {one for role in hashes.values() for one in role} == {
        content_hash(pair.image) for pair in pairs
    }

    images = FitImages.recorded(store.report("tiny", published.manifest.id))
    (tmp_path / "other").mkdir()
    some = {f"other{n:02}": known[f"image{n:02}"] for n in range(3)}
    fresh = {"new": (255 - thirds(), [[0, 1, 1, 2] * 3] * 8)}
    model = LocalModel(
        predictor,
        store.load("tiny", published.manifest.id, folder.sha256),
        10_000,
        fit_images=images,
    )
    evaluated = write_set(tmp_path / "other", **some, **fresh)
    done = evaluate_model(model, evaluated, Options(255, 10_000), lambda: None)
    assert done.shared is not None
    assert done.shared.total == 3
    assert done.shared.fit + done.shared.held_out == 3
    assert find_pairs(tmp_path / "other/images", tmp_path / "other/labels") == evaluated
