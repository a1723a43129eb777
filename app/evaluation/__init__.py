"""Evaluation of a served model on labelled images, and its report."""

from app.evaluation.analyses import Analyses, AnalysisOptions, analyse, evaluations
from app.evaluation.analysis_document import analysis_document
from app.evaluation.charts import reliability_curves, reliability_diagram
from app.evaluation.evaluate import (
    Comparison,
    EvaluatedModel,
    ImagePredictions,
    LocalModel,
    Measured,
    Options,
    ScoredPrediction,
    compare,
    evaluate_model,
    measure,
)
from app.evaluation.fit_images import FitImages
from app.evaluation.formatting import (
    findings,
    headline,
    interval_text,
    metric_rows,
    number,
    shared_images,
    signed,
    too_few_units,
)
from app.evaluation.html_report import render
from app.evaluation.thumbnails import Thumbnails, draw_thumbnails

__all__ = [
    "Analyses",
    "AnalysisOptions",
    "Comparison",
    "EvaluatedModel",
    "FitImages",
    "ImagePredictions",
    "LocalModel",
    "Measured",
    "Options",
    "ScoredPrediction",
    "Thumbnails",
    "analyse",
    "analysis_document",
    "compare",
    "draw_thumbnails",
    "evaluate_model",
    "evaluations",
    "findings",
    "headline",
    "interval_text",
    "measure",
    "metric_rows",
    "number",
    "reliability_curves",
    "reliability_diagram",
    "render",
    "shared_images",
    "signed",
    "too_few_units",
]
