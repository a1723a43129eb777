"""An evaluation in parts, as Ray's actors run it, equals that of the whole set."""

import numpy as np
import pytest

from app.cli.evaluation import local_model
from app.evaluation.evaluate import Measured, Options, compare, evaluate_model, measure
from tests.evaluation.test_evaluate import write_set
from tests.factories.service import publish_temperature


def test_merged_parts_equal_the_whole(tmp_path, make_settings, models_dir, artifacts_dir):
    rng = np.random.default_rng(0)
    made = {
        f"{index:02}": (
            rng.integers(0, 256, (16, 20, 3), np.uint8),
            rng.integers(0, 3, (16, 20)).tolist(),
        )
        for index in range(11)
    }
    pairs = write_set(tmp_path, **made)
    publish_temperature(artifacts_dir, models_dir / "tiny", temperature=2)
    model = local_model(make_settings(), "tiny", "active", "none")
    options = Options(255, 10_000)

    whole = evaluate_model(model, pairs, options, lambda: None)
    merged = Measured.of(model)
    for part in (pairs[:4], pairs[4:5], pairs[5:]):
        merged.merge(measure(model, part, options, lambda: None))
    divided = compare(model, pairs, options, merged)

    assert whole.after is not None
    assert divided.after is not None
    for one, other in ((whole.before, divided.before), (whole.after, divided.after)):
        assert other.evaluation.result() == pytest.approx(
            one.evaluation.result(), abs=1e-9, nan_ok=True
        )
        assert other.images == one.images
        assert other.boundary_errors == pytest.approx(one.boundary_errors, abs=0, nan_ok=True)
        assert np.array_equal(other.evaluation.confusion, one.evaluation.confusion)
        for kind in ("correct", "mispredicted", "boundary", "interior"):
            assert other.kind(kind) == pytest.approx(one.kind(kind), abs=1e-9, nan_ok=True)
        for class_of, other_class in zip(one.classes(), other.classes(), strict=True):
            assert other_class.predicted == pytest.approx(class_of.predicted, abs=1e-9, nan_ok=True)
    assert divided.difference == whole.difference
    assert divided.labels_changed == whole.labels_changed
