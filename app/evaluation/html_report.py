"""The page: one HTML file without scripts, that loads nothing and tells a browser so.

Class and file names are untrusted; the templates escape whatever is not marked as safe here.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app import __version__
from app.calibration.metrics import subsets as analyses
from app.calibration.metrics.assessment import Assessment
from app.evaluation import charts
from app.evaluation import formatting as sentences
from app.evaluation.evaluate import Comparison
from app.evaluation.formatting import count, metric_rows, number, percent, points, signed
from app.evaluation.thumbnails import Views
from app.storage.manifest import timestamp

TEMPLATES = Path(__file__).parent / "templates"
REASONS = {
    "calibration": "highest calibration error",
    "confident errors": "most errors at 90% confidence or more",
}
KINDS = (
    (analyses.CORRECT, "Right pixels"),
    (analyses.MISPREDICTED, "Wrong pixels"),
    (analyses.BOUNDARY, "Within 2 pixels of another class"),
    (analyses.INTERIOR, "Elsewhere"),
)


def render(comparison: Comparison, images: Mapping[int, Views]) -> str:
    """Write the page; `images` are views of the set's images by index, in order."""
    style = (TEMPLATES / "report.css").read_text("utf-8")
    return _environment().get_template("report.html").render(
        comparison=comparison,
        card=comparison.folder.card,
        manifest=comparison.manifest,
        served=comparison.served,
        sides=_sides(comparison),
        headline=sentences.headline(comparison.before, comparison.after),
        findings=sentences.findings(comparison.before, comparison.after, comparison.difference),
        metric_rows=metric_rows(comparison.before, comparison.after),
        kinds=KINDS,
        classes=list(
            zip(comparison.folder.card.output.classes, comparison.served.classes(), strict=True)
        ),
        images=images,
        reasons=comparison.worst(),
        reason_names=REASONS,
        risk_coverage=charts.risk_coverage(
            [charts.Curve(kind, side.evaluation.confidence_histogram.risk_coverage())
             for kind, _, side in _sides(comparison)]
        ),
        style=Markup(style),  # noqa: S704 - our own file
        style_hash=_sha256(style),
        version=__version__,
        made_at=timestamp(),
    )  # fmt: skip


def _sides(comparison: Comparison) -> list[tuple[str, str, Assessment]]:
    sides = [("before", "Uncalibrated", comparison.before)]
    if comparison.after is not None:
        sides.append(("after", "Calibrated", comparison.after))
    return sides


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "percent": percent,
        "count": count,
        "points": points,
        "fraction_bar": charts.fraction_bar,
        "swatch": charts.swatch,
        "reliability": charts.reliability,
    }
    return environment


def _sha256(style: str) -> str:
    """Hash a style sheet as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
