"""HTML page of an evaluation: one file without scripts that loads nothing.

Class and file names are untrusted: the template escapes everything except the style sheet.
"""

import base64
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app import __version__
from app.calibration.metrics import subsets
from app.evaluation import formatting
from app.evaluation.analyses import Analyses
from app.evaluation.analysis_figures import analysis_figures, stages
from app.evaluation.charts import STYLES, reliability_diagram, risk_coverage_diagram
from app.evaluation.evaluate import Comparison
from app.evaluation.thumbnails import Thumbnails, data_uri
from app.storage.manifest import timestamp

TEMPLATES = Path(__file__).parent / "templates"
REASONS = {
    "calibration": "highest calibration error",
    "confident errors": "most errors at 90% confidence or more",
}
SUBSETS = (
    (subsets.CORRECT, "Correct pixels"),
    (subsets.MISPREDICTED, "Wrong pixels"),
    (subsets.BOUNDARY, "Within 2 pixels of another class"),
    (subsets.INTERIOR, "Elsewhere"),
)


def render(
    comparison: Comparison,
    thumbnails: Mapping[int, Thumbnails],
    analyses: Analyses | None = None,
) -> str:
    """Render the page, with `thumbnails` by index of the image, in the order of the mapping."""
    before, after = comparison.before, comparison.after
    assessments = stages(comparison)
    reliability = {stage: side.evaluation.reliability() for stage, side in assessments.items()}
    risk_coverage = {
        stage: side.evaluation.confidence_histogram.risk_coverage()
        for stage, side in assessments.items()
    }
    style = (TEMPLATES / "report.css").read_text("utf-8")
    return _environment().get_template("report.html").render(
        comparison=comparison,
        card=comparison.folder.card,
        manifest=comparison.manifest,
        served=comparison.served,
        columns=[(STYLES[stage].label, side) for stage, side in assessments.items()],
        headline=formatting.headline(before, after),
        findings=formatting.findings(before, after, comparison.difference, comparison.units),
        shared_images=formatting.shared_images(comparison.shared, len(comparison.pairs)),
        too_few_units=formatting.too_few_units(comparison.units),
        ece=comparison.ece_interval(comparison.served),
        reliability_diagram=data_uri(reliability_diagram(reliability), "svg+xml"),
        risk_coverage_diagram=data_uri(risk_coverage_diagram(risk_coverage), "svg+xml"),
        metric_rows=formatting.metric_rows(before, after),
        subsets=SUBSETS,
        classes=list(
            zip(comparison.folder.card.output.classes, comparison.served.classes(), strict=True)
        ),
        figures=[] if analyses is None else analysis_figures(analyses),
        thumbnails=thumbnails,
        reasons=comparison.worst(),
        reason_names=REASONS,
        style=Markup(style),  # noqa: S704 - a file of this package
        style_hash=_sha256(style),
        version=__version__,
        made_at=timestamp(),
    )  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg_uri"] = partial(data_uri, subtype="svg+xml")
    names = ("number", "signed", "percent", "count", "points", "interval_text")
    environment.filters |= {name: getattr(formatting, name) for name in names}
    return environment


def _sha256(style: str) -> str:
    """Hash a style sheet as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
