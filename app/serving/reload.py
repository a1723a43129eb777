"""Load the folders of models, again where they have changed; models in use stay as they are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.errors import ModelError
from app.inference.model_card import ModelFolder, read_model_folder
from app.inference.predictor import Predictor


@dataclass
class LoadReport:
    """Names of models by what was done with them; `refused` holds the reasons by name.

    `loaded` are new or changed. A refused or removed model is no longer that of its folder; where
    an earlier state of a refused model was served, it still is.
    """

    loaded: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def load_folders(
    paths: Iterable[Path],
    current: Mapping[str, Predictor],
    open_folder: Callable[[ModelFolder], Predictor],
    default_model: str | None = None,
) -> tuple[dict[str, Predictor], LoadReport]:
    """Load new and changed folders; return all predictors to serve, and the report.

    Predictors of unchanged weights and tables are reused. The default model, and the last one, are
    refused to be removed.
    """
    predictors: dict[str, Predictor] = {}
    report = LoadReport()
    for path in paths:
        known = current.get(path.name)
        try:
            folder = read_model_folder(path)
            if known is not None and known.folder == folder:
                predictors[path.name] = known
                report.unchanged.append(path.name)
                continue
            predictors[path.name] = _changed(known, folder) or open_folder(folder)
            report.loaded.append(path.name)
        except ModelError as error:
            report.refused[path.name] = str(error)
            if known is not None:
                predictors[path.name] = known
    _remove_missing(current, predictors, report, default_model)
    return predictors, report


def _changed(known: Predictor | None, folder: ModelFolder) -> Predictor | None:
    """Return a loaded predictor with a card whose texts have changed, else None."""
    if known is None or (known.folder.sha256, known.folder.path) != (folder.sha256, folder.path):
        return None
    return replace(known, folder=folder)


def _remove_missing(
    current: Mapping[str, Predictor],
    predictors: dict[str, Predictor],
    report: LoadReport,
    default_model: str | None,
) -> None:
    missing = current.keys() - predictors.keys()
    needed = missing if not predictors else missing & {default_model}
    for name in sorted(missing):
        if name in needed:
            predictors[name] = current[name]
            why = "the default model" if name == default_model else "at least one model"
            report.refused[name] = f"expected the folder of {why}, got none"
        else:
            report.removed.append(name)
