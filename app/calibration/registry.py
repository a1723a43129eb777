"""Every calibration method by its name."""

from collections.abc import Mapping
from types import MappingProxyType

from app.calibration.affine import Dirichlet, Matrix, MatrixTI
from app.calibration.base import Calibrator
from app.calibration.conditional import CDC, CMSap, CMSop
from app.calibration.contextual import Contextual
from app.calibration.ensemble import Ensemble
from app.calibration.identity import Identity
from app.calibration.isotonic import Isotonic, IsotonicOneVsAll
from app.calibration.lts import ImageTemperature, LocalTemperature
from app.calibration.metacal import MetaCal
from app.calibration.selective import Selective, over
from app.calibration.temperature import Temperature
from app.calibration.vector import Vector, VectorTI
from app.errors import ArgumentError

_ALONE: tuple[type[Calibrator], ...] = (
    Identity,
    Temperature,
    Vector,
    VectorTI,
    Matrix,
    MatrixTI,
    Dirichlet,
    Ensemble,
    Isotonic,
    IsotonicOneVsAll,
    LocalTemperature,
    ImageTemperature,
    MetaCal,
    CDC,
    CMSap,
    CMSop,
    Contextual,
)
_SELECTIVE: tuple[type[Calibrator], ...] = (
    Selective,
    *(over(other) for other in _ALONE if other not in (Identity, Contextual)),
)

METHODS: Mapping[str, type[Calibrator]] = MappingProxyType(
    {calibrator.method: calibrator for calibrator in (*_ALONE, *_SELECTIVE)}
)


def build(method: str, num_classes: int) -> Calibrator:
    """Make a fresh calibrator; raises ArgumentError for an unknown name or under 2 classes."""
    if method not in METHODS:
        raise ArgumentError(f"expected one of {', '.join(METHODS)}, got {method}")
    if num_classes < 2:
        raise ArgumentError(f"expected at least 2 classes, got {num_classes}")
    return METHODS[method](num_classes)
