"""Every calibration method by its name."""

from collections.abc import Mapping
from types import MappingProxyType

from app.calibration.base import Calibrator
from app.calibration.methods.class_conditional import CDC, CMSap, CMSop
from app.calibration.methods.contextual.calibrator import Contextual
from app.calibration.methods.ensemble_temperature import Ensemble
from app.calibration.methods.identity import Identity
from app.calibration.methods.isotonic import Isotonic, IsotonicOneVsAll
from app.calibration.methods.local_temperature import ImageTemperature, LocalTemperature
from app.calibration.methods.matrix import Dirichlet, Matrix, MatrixTI
from app.calibration.methods.meta_cal import MetaCal
from app.calibration.methods.selective import Selective, over
from app.calibration.methods.temperature import Temperature
from app.calibration.methods.vector import Vector, VectorTI
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
