"""Selective scaling (Wang et al. 2023): one temperature for trusted pixels, one for doubted ones.

Both temperatures divide, both are fitted by convex negative log-likelihood on held-out images,
and neither changes the order of the classes. Hard routing takes one of the two by the selector's
verdict; soft mixing weighs both distributions with its probability, which throws nothing away.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from app.calibration.base import Calibrator, FitContext, Invariances, prepared
from app.calibration.identity import Identity
from app.calibration.pixelwise import uniform_where_broken
from app.calibration.sampling import count_classes, draw, require_two_classes
from app.calibration.selector import Selector
from app.calibration.temperature import fit_inverse_temperature
from app.calibration.validation import IGNORE, LabelledImage, Subset, ValidationSet, View, split
from app.errors import ArgumentError

TRAIN_SHARE = 0.7  # of the images; the rest stops training and sets the temperatures
SELECTOR_FLOATS = 2**23  # pixels beyond some hundred an image teach the selector little


class Selective(Calibrator):
    """q softmax(g/T_ok) + (1-q) softmax(g/T_mis) with q = P(correct); hard: q is 0 or 1.

    g is the logits, or another calibrator's log-probabilities in the `selective+<other>` forms;
    the selector always sees the logits. `mixing` is "soft" or "hard"; `mispredicted` fixes
    T_mis (the paper used 2 and 1e10; the latter becomes 1e4) and T_ok at 1.
    """

    method: ClassVar[str] = "selective"
    invariances: ClassVar[Invariances] = Invariances(translation=True, argmax=True, order=True)
    base_class: ClassVar[type[Calibrator]] = Identity
    beta_ok: Tensor
    beta_mis: Tensor
    soft: Tensor

    def __init__(
        self, num_classes: int, *, mixing: str = "soft", mispredicted: float | None = None
    ) -> None:
        super().__init__(num_classes)
        if mixing not in ("soft", "hard"):
            raise ArgumentError(f"expected mixing to be soft or hard, got {mixing}")
        self.mispredicted = mispredicted
        self.base = self.base_class(num_classes)
        self.selector = Selector(num_classes)
        self.register_buffer("beta_ok", torch.ones(()))
        self.register_buffer("beta_mis", torch.ones(()))
        self.register_buffer("soft", torch.tensor(float(mixing == "soft")))

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [N,K,...] to log-probabilities."""
        odds = self._odds(logits)
        verdict = torch.where(odds > 0, 60.0, -60.0)  # log-odds of certainty in float32
        odds = torch.where(self.soft > 0, self.selector.calibrated(odds), verdict)
        based = self.base.seeing(self.picture)(logits)
        trusted = (based * self.beta_ok).log_softmax(dim=1)
        doubted = (based * self.beta_mis).log_softmax(dim=1)
        mixed = torch.logaddexp(
            trusted - torch.nn.functional.softplus(-odds),
            doubted - torch.nn.functional.softplus(odds),
        )
        return uniform_where_broken(mixed, logits)

    def suspects(self, logits: Tensor) -> Tensor:
        """Mark the pixels that hard routing gives T_mis."""
        return self._odds(logits)[:, 0] <= 0

    def _odds(self, logits: Tensor) -> Tensor:
        """Logits [N,K,...] to the selector's log-odds [N,1,...] as trained."""
        odds: Tensor = self.selector(prepared(logits).movedim(1, -1))
        return odds.movedim(-1, 1)

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Fit the base and the selector on some images, both temperatures on the others.

        Where no pixel is mispredicted there is nothing to select: both temperatures become the
        one of least negative log-likelihood. Needs labels of two classes; a set of one image
        serves as both parts.
        """
        require_two_classes(count_classes(data))
        train, select = _parts(data, context)
        self.base.fit(train, context)
        trained, held = (draw(part, context, SELECTOR_FLOATS) for part in (train, select))
        if (trained.logits.argmax(1) == trained.labels).all():
            self._revert(select, context)
            return
        self.selector.fit(trained, held, context)
        self.beta_ok.fill_(1.0)
        if self.mispredicted is None:
            self.beta_ok.fill_(self._beta(select, context, lambda odds: odds > 0))
            self.beta_mis.fill_(self._beta(select, context, lambda odds: odds <= 0))
        else:
            self.beta_mis.fill_(1 / min(max(self.mispredicted, 0.05), 1e4))

    def summary(self) -> dict[str, float]:
        """Give both temperatures, which divide."""
        return {"t_ok": 1 / self.beta_ok.item(), "t_mis": 1 / self.beta_mis.item()}

    def _revert(self, select: ValidationSet, context: FitContext) -> None:
        self.selector = Selector(self.num_classes)
        beta = self._beta(select, context, torch.isfinite)
        self.beta_ok.fill_(beta)
        self.beta_mis.fill_(beta)

    def _beta(
        self, data: ValidationSet, context: FitContext, chosen: Callable[[Tensor], Tensor]
    ) -> float:
        """Find the inverse temperature of the chosen pixels, or of all where there are none."""
        routed = Routed(data, self.base, self.selector, chosen)
        if not any((routed[index].labels != IGNORE).any() for index in range(len(routed))):
            return fit_inverse_temperature(replace(routed, chosen=torch.isfinite), context)
        return fit_inverse_temperature(routed, context)


@dataclass(frozen=True)
class Routed(View):
    """A set as the base calibrates it, labelled only where the selector's odds are chosen."""

    base: Calibrator
    selector: Selector
    chosen: Callable[[Tensor], Tensor]

    def __getitem__(self, index: int) -> LabelledImage:
        logits, labels, picture = self.whole[index]
        with torch.no_grad():
            based = self.base.seeing(picture)(logits[None])[0]
            odds = self.selector(prepared(logits[None]).movedim(1, -1))[0, ..., 0]
        return LabelledImage(based, labels.where(self.chosen(odds), IGNORE))


def over(other: type[Calibrator]) -> type[Selective]:
    """Make the class that selects on top of another method's log-probabilities."""
    promised = other.invariances

    class SelectiveOver(Selective):
        __doc__ = f"Selective scaling of {other.method}'s log-probabilities."
        method = f"selective+{other.method}"
        invariances = promised
        sees_picture = other.sees_picture
        needs_maps = other.needs_maps
        base_class = other

    return SelectiveOver


def _parts(data: ValidationSet, context: FitContext) -> tuple[ValidationSet, ValidationSet]:
    """Images to train on and images to set the temperatures with."""
    if len(data) < 2:
        return data, data
    train, select = split(data, TRAIN_SHARE, context.seed)
    return Subset(data, train), Subset(data, select)
