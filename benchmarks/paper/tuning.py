"""Choose the options of each method on a backbone's development images.

Every method has the same budget: four settings of its constructor, one fit each, and the one of
the least negative log-likelihood of correctness on `dev` is kept. A method that is not listed has
no options. `contextual` was chosen on the same images (`benchmarks.paper.ablation`).
"""

from collections.abc import Mapping, Sequence
from statistics import mean

from app.calibration.base import FitContext
from app.calibration.comparison import evaluate_calibrators
from app.calibration.registry import discover
from benchmarks.paper.data import StoredPart

Options = dict[str, float | str]
DEFAULT: Options = {}
PENALTIES: Sequence[Options] = [
    {"off_diagonal": weight, "bias_weight": weight} for weight in (0.0, 1e-3, 1e-2, 1e-1)
]
PULLS: Sequence[Options] = [{"pull": pixels} for pixels in (10.0, 100.0, 1000.0, 10_000.0)]
MIXINGS: Sequence[Options] = [
    DEFAULT, {"mixing": "hard"}, {"mispredicted": 2.0}, {"mixing": "hard", "mispredicted": 2.0},
]  # fmt: skip
SETTINGS_OF: Mapping[str, Sequence[Options]] = {
    "matrix_ti": PENALTIES,
    "dirichlet": PENALTIES,
    "metacal": [{"miscoverage": fraction} for fraction in (0.02, 0.05, 0.1, 0.2)],
    **dict.fromkeys(("cdc", "cmsap", "cmsop"), PULLS),
    **dict.fromkeys(("selective", "selective+temperature", "selective+isotonic"), MIXINGS),
}


def tuned(parts: Mapping[str, StoredPart]) -> dict[str, Options]:
    """Return the chosen options by method; nothing where there are no development images."""
    if "dev" not in parts:
        return {}
    return {method: chosen(method, settings, parts) for method, settings in SETTINGS_OF.items()}


def chosen(method: str, settings: Sequence[Options], parts: Mapping[str, StoredPart]) -> Options:
    """Fit a method with each setting and return that of the least loss on `dev`."""
    data, context = parts["fit"], FitContext()
    calibrators = [discover()[method](data.num_classes, **options) for options in settings]
    for calibrator in calibrators:
        calibrator.fit(data, context)
        calibrator.eval()
    results = evaluate_calibrators(parts["dev"], calibrators, context)
    losses = [mean(result.image_scores) for result in results]
    return settings[losses.index(min(losses))]
