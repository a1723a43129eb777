"""`GET /models`: what serves, and with which calibrator."""

from fastapi import APIRouter

from app.api.schemas import ClassInfo, ModelInfo, ModelList
from app.api.state import SegmenterDep, StateDep
from app.inference.predictor import Predictor
from app.service import ACTIVE, Segmenter

router = APIRouter(tags=["models"])


@router.get("/models")
def models(segmenter: SegmenterDep, state: StateDep) -> ModelList:
    """List the models that serve, and the folders that were refused with the reason."""
    listed = [describe(segmenter, predictor) for predictor in segmenter.predictors.values()]
    return ModelList(models=listed, refused=dict(state.readiness.refused))


@router.get("/models/{model}")
def model(model: str, segmenter: SegmenterDep) -> ModelInfo:
    """Describe one model."""
    return describe(segmenter, segmenter.predictor(model))


def active_id(segmenter: Segmenter, predictor: Predictor) -> str | None:
    """Name the calibrator that answers now rest on."""
    stored = segmenter.calibrator(predictor, ACTIVE)
    return None if stored is None else stored.manifest.id


def describe(segmenter: Segmenter, predictor: Predictor) -> ModelInfo:
    """Shape what is known of a model."""
    folder, card = predictor.folder, predictor.folder.card
    return ModelInfo(
        name=card.name,
        default=card.name == segmenter.default_model,
        title=card.title,
        license=card.license,
        source=card.source,
        sha256=folder.sha256,
        num_classes=folder.num_classes,
        classes=[
            ClassInfo(id=index, name=info.name, color=info.color)
            for index, info in enumerate(card.output.classes)
        ],
        input=card.input.model_dump(mode="json"),
        ignore_index=card.output.ignore_index,
        device=predictor.backbone.device,
        active_calibrator=active_id(segmenter, predictor),
        metrics=card.metrics,
    )
