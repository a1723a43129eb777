"""Contextual scaling (ours): each pixel gets the temperature that makes its confidence believed.

A few small networks read a pixel's log-probabilities, its two leading classes and its
neighbourhood, and say with what probability its label is right; the mean of their log-odds is
the selector's opinion. The pixel's confidence becomes

    odds = (1 - trust) own + trust selector's,    in log-odds,

own being the network's after temperature scaling, and the pixel's temperature the one at which the
top probability is just that: neither the label nor the order of the classes changes.

Of a fine grid every second or third row and column is looked at, as the fit's first image has it,
and opinions are interpolated.

An image unlike those of the fit is no reason to be surer: its log-odds are lowered by a fifth at
most, and never raised. Where the fit's images come with copies under other weather, there is a
second opinion for it, which has learned from those too and knows where on pictures each class
lies. That is told less and less as an image is unlike the copies as well; then it lowers only. And
it is asked only as far as the picture itself looks unlike the fit's, in contrast and sharpness:
another street at another hour is no spoiled picture.
Selectors alone (Wang et al. 2023 route by one) gain most on images like those of the fit and lose
most elsewhere.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.calibration.base import (
    Calibrator,
    Changes,
    FitContext,
    Floats,
    Invariances,
    Share,
    alone,
    prepared,
    uniform_where_broken,
)
from app.calibration.dataset import LabelledImage, ValidationSet, copies_of, split
from app.calibration.methods.contextual.combine import settle
from app.calibration.methods.contextual.detector import Opinion
from app.calibration.methods.contextual.features import (
    COARSEST,
    FARTHEST,
    Context,
    context_of,
    interpolated,
    log_odds,
    step_of,
    thinned,
)
from app.calibration.methods.contextual.image_statistics import (
    FIGURES,
    LEAST_LIMIT,
    LEAST_SPREAD,
    SUMS,
    figures_of,
    row_means,
)
from app.calibration.methods.contextual.in_distribution import Familiarity
from app.calibration.methods.contextual.kernels import Network, changes_of
from app.calibration.methods.contextual.networks import look, looked_at
from app.calibration.methods.contextual.pixel_temperature import beta_for
from app.calibration.methods.contextual.position_prior import BANDS, bands_of, layout_of
from app.calibration.methods.contextual.training import CLEAN, SPOILED, looks_of, teach
from app.calibration.methods.temperature import fit_inverse_temperature
from app.calibration.sampling import count_classes, require_two_classes
from app.errors import ArgumentError

TRAIN_SHARE = 0.75  # of the images; the rest chooses the round of training and sets the trust
DOUBT = np.float32(0.2)  # that unfamiliar images may take from the log-odds
_NO = np.float32(0)


class Contextual(Calibrator):
    """softmax(b z) with the b of each pixel at which the top probability is as believed.

    Works on maps [N,K,h,w] and tables [N,K,...]; what was fitted on tables never looks at a
    neighbourhood. Where a source has copies of its images under other weather
    (`copies_of`), the selectors learn from those too.
    """

    method: ClassVar[str] = "contextual"
    invariances: ClassVar[Invariances] = Invariances(
        translation=True,
        argmax=True,
        order=True,
        reach=COARSEST * (FARTHEST + 1) - 1,  # of fine grids; the next opinion counts as well
    )
    beta: Tensor
    local: Tensor
    spacing: Tensor
    layout: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.opinion = Opinion(num_classes, placed=False)
        self.wary = Opinion(num_classes, placed=True)
        self.scenery = Familiarity(FIGURES, LEAST_SPREAD, LEAST_LIMIT)
        self.register_buffer("beta", torch.ones(()))
        self.register_buffer("local", torch.ones(()))
        self.register_buffer("spacing", torch.ones(()))
        self.register_buffer("layout", torch.zeros(num_classes, BANDS))
        # The same as plain values, since tensors can neither slice nor decide.
        self.step, self.warned = 1, False
        self.register_load_state_dict_post_hook(Contextual._take_stock)  # type: ignore[no-untyped-call]

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [N,K,...] to log-probabilities."""
        if logits.ndim == 2:  # a table whose rows are pixels
            return self.forward(logits.T[None])[0].T
        logs = (prepared(logits) * self.beta).log_softmax(dim=1)
        believed = self.believed(logs)
        calibrated = (logs * beta_for(logs, believed)).log_softmax(dim=1)
        return uniform_where_broken(calibrated, logits)

    def believed(self, logs: Tensor) -> Tensor:
        """Log-probabilities at the temperature [N,K,...] to log-odds [N,1,...] of being right."""
        step = self.step_for(logs)
        context = context_of(thinned(logs, step), self.local, self.layout)
        means = context.seen(placed=True).flatten(2).mean(dim=2)
        changes = [opinion(context) for opinion in self._opinions()]
        natural = self.natural(self._glimpse(step)) if self.sees_picture else 0.0
        moved = self.moved(changes, means, natural, [-1, *[1] * (logs.ndim - 1)])
        return log_odds(logs.amax(1, keepdim=True)) + interpolated(moved, logs.shape[-2:], step)

    def step_for(self, planes: Tensor) -> int:
        """Tell how far apart the cells lie that are looked at: as in the fit, if it knew a grid.

        The rows of tables [N,K,m] have no grid, and are all looked at.
        """
        return self.step if self.step and planes.ndim == 4 else step_of(planes)

    def moved(
        self, changes: Sequence[Tensor], means: Tensor, natural: float, shape: Sequence[int]
    ) -> Tensor:
        """What trusted opinions together move the log-odds by.

        `means` [N,F] are images' mean features, `natural` says how far the picture looks like
        those of the fit, and `shape` makes [N] fit the changes.
        """
        familiar = self.opinion.familiarity(means).view(shape)
        elsewhere = changes[0].clamp(-float(DOUBT), 0.0)
        if self.warned:
            known = self.wary.familiarity(means).view(shape)
            lower = changes[1].clamp_max(0)
            spoiled = lower + known * (changes[1] - lower)
            elsewhere = spoiled + natural * (elsewhere - spoiled)
        total: Tensor = elsewhere + familiar * (changes[0] - elsewhere)
        return total

    def natural(self, glimpse: Tensor) -> float:
        """Tell how like the fit's a picture looks, 0..1, from what `row_means` gave of it."""
        return float(self.scenery(figures_of(glimpse)[None]))

    def _glimpse(self, step: int) -> Tensor:
        """Look along the rows of the picture that are looked at: float32 [n,5]."""
        if self.picture is None:
            raise ArgumentError("expected the picture, which a fit with weather looks at, got none")
        return row_means(self.picture[:, ::step])

    def _opinions(self) -> list[Opinion]:
        return [self.opinion, self.wary] if self.warned else [self.opinion]

    def suspects(self, logits: Tensor) -> Tensor | None:
        """Mark the pixels that are believed to be wrong rather than right."""
        if not any(opinion.trust for opinion in self._opinions()):
            return None
        logs = (prepared(logits) * self.beta).log_softmax(dim=1)
        return self.believed(logs)[:, 0] < 0

    def scale(self) -> float | None:
        """Give the inverse temperature."""
        return self.beta.item()

    def changes(
        self, logits: Tensor, share: Share = alone, top: int = 0, height: int | None = None
    ) -> Changes | None:
        """Ask the networks about finite logits [K,n,w]."""
        if not any(opinion.trust for opinion in self._opinions()):
            return None
        step = self.step_for(logits[None])
        cells = np.ascontiguousarray(logits.numpy()[:, ::step, ::step])
        begin, count = top // step, -(-(height or logits.shape[1]) // step)
        rows = range(begin, begin + cells.shape[1])
        networks = [
            Network(opinion.selectors.weights(), self._places(rows, count, opinion))
            for opinion in self._opinions()
        ]
        change, sums = changes_of(cells, self.beta.item(), networks, self.local.item(), share)
        standings = self.opinion.standing(), self.wary.standing()
        if not self.sees_picture:
            return Changes(change, sums, step, lambda c, s: settle(c, s, *standings, _NO, DOUBT))

        def settled(change: Floats, sums: Floats) -> Floats:
            natural = np.float32(self.natural(torch.from_numpy(sums[:, -SUMS:])))
            of_features = np.ascontiguousarray(sums[:, :-SUMS])  # what was compiled takes no other
            return settle(change, of_features, *standings, natural, DOUBT)

        glimpse = self._glimpse(step).numpy()
        return Changes(change, np.concatenate([sums, glimpse], axis=1), step, settled)

    def _places(self, rows: range, count: int, opinion: Opinion) -> NDArray[np.float32]:
        """Log-probabilities [n,K] of classes in some of so many rows, if an opinion wants them."""
        if not opinion.placed:
            return np.empty((0, self.num_classes), np.float32)
        bands = bands_of(count)[rows.start : rows.stop]
        return self.layout.T[bands].contiguous().numpy()

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Train on some images, choose the round and set the trust on others; needs two classes.

        The temperature comes first, from all of them. Where no pixel of the training images is
        mispredicted there is nothing else to learn. A set of one image serves as both parts.
        """
        require_two_classes(count_classes(data))
        self.beta.fill_(fit_inverse_temperature(data, context))
        both = (list(range(len(data))),) * 2
        parts = split(data, TRAIN_SHARE, context.seed) if len(data) > 1 else both
        self.local.fill_(float(data[0].labels.ndim == 2))
        self.spacing.fill_(self.local * step_of(data[0].logits[None]))
        self._take_stock()
        self.wary.forget()
        self.scenery.forget()
        self.layout.zero_()
        teach(self.opinion, CLEAN, data, parts, self._see, context)
        if copies_of(data, 0):
            if self.local:
                self.layout.copy_(layout_of(data, parts[0]))
            teach(self.wary, SPOILED, data, parts, self._see, context)
            looks = looks_of(data, self.step or 1, context) if self.wary.trust else None
            if looks is not None:
                self.scenery.learn(looks)
        self._take_stock()

    def summary(self) -> dict[str, float]:
        """Give the temperature, and the opinions' shares in the log-odds."""
        shares = {"trust": self.opinion.trust.item()}
        if self.warned:
            shares["trust_elsewhere"] = self.wary.trust.item()
        return {"temperature": 1 / self.beta.item(), **shares}

    def _take_stock(self, _keys: object = None) -> None:
        self.step = int(self.spacing.item())
        # An opinion that is trusted with nothing is no reason to be less careful than without.
        self.warned = bool(self.wary.trust)
        self.sees_picture = self.warned and self.scenery.fitted

    def _see(self, image: LabelledImage) -> tuple[Context, Tensor]:
        """Read an image's cells that are looked at."""
        seen = looked_at(image, self.step_for(image.logits[None]))
        return look(seen, self.beta, self.local, self.layout), seen.labels
