"""Properties of rendered street scenes that training depends on."""

from functools import cache

import numpy as np
import pytest

from training.scenes import CONDITIONS, Scene, render_scene
from training.scenes.canvas import Label

SEEDS = range(20)
HEIGHT, WIDTH = 180, 240


@cache
def scene(seed: int, condition: str | None = None) -> Scene:
    return render_scene(seed, HEIGHT, WIDTH, condition)


def fraction_of_seeds(holds) -> float:
    return float(np.mean([holds(scene(seed)) for seed in SEEDS]))


def test_the_same_seed_gives_the_same_bytes():
    first, again = scene(3), render_scene(3, HEIGHT, WIDTH)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.label.tobytes() == again.label.tobytes()


def test_another_seed_gives_another_scene():
    assert scene(3).label.tobytes() != scene(4).label.tobytes()


@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (121, 167), (64, 200)])
def test_images_and_labels_have_the_given_size(height, width):
    made = render_scene(1, height, width)
    assert made.image.shape == (height, width, 3)
    assert made.label.shape == (height, width)
    assert made.image.dtype == made.label.dtype == np.uint8


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_are_classes_or_void(seed):
    assert set(np.unique(scene(seed).label)) <= set(range(12))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_renders(condition):
    made = scene(5, condition)
    assert made.image.std() > 5
    assert len(np.unique(made.label)) >= 5


def test_condition_changes_the_image():
    day, night = scene(5, "day").image, scene(5, "night").image
    assert night.mean() < 0.6 * day.mean()


def test_condition_is_drawn_by_default():
    drawn = scene(5)
    assert any(np.array_equal(scene(5, condition).image, drawn.image) for condition in CONDITIONS)


def test_sky_is_above_the_road():
    def ordered(made: Scene) -> bool:
        rows = np.arange(HEIGHT)[:, None] * np.ones(WIDTH)
        sky, road = (rows[made.label == label] for label in (Label.SKY, Label.ROAD))
        return bool(sky.size == 0 or sky.max() < np.quantile(road, 0.25))

    assert fraction_of_seeds(ordered) > 0.9


def test_at_most_0_1_percent_sky_below_the_highest_horizon():
    lower = np.stack([scene(seed).label[int(0.56 * HEIGHT) + 12 :] for seed in SEEDS])
    assert (lower == Label.SKY).mean() < 0.001


def test_the_camera_is_on_the_road():
    def on_road(made: Scene) -> bool:
        strip = made.label[int(0.88 * HEIGHT) : int(0.92 * HEIGHT), WIDTH // 2 - 5 : WIDTH // 2 + 5]
        return bool(np.median(strip) == Label.ROAD)

    assert fraction_of_seeds(on_road) > 0.9


@pytest.mark.parametrize(
    "label",
    [Label.POLE, Label.SIGN, Label.FENCE, Label.CAR, Label.PEDESTRIAN, Label.BICYCLIST],
)
def test_rare_classes_occur_in_most_scenes(label):
    assert fraction_of_seeds(lambda made: (made.label == label).any()) > 0.5
