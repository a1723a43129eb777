"""Contextual scaling (ours): each pixel gets the temperature that makes its confidence believed.

A few small networks read a pixel's log-probabilities, its two leading classes and its
neighbourhood, and say with what probability its label is right; the mean of their log-odds is
the selector's opinion. The pixel's confidence becomes

    odds = (1 - trust) own + trust selector's,    in log-odds,

own being the network's after temperature scaling, and the pixel's temperature the one at which the
top probability is just that: neither the label nor the order of the classes changes.

`trust` is the least of a few shares that held-out images can't tell from the best one, and never
the whole: what is left of the network's own confidence is what keeps an unfamiliar drive from harm.
Of a fine grid every second or third row and column is looked at, as the fit's first image has it,
and opinions are interpolated.
Where an image's features, on average, lie farther from those of the fit's images than three in four
of these do, the opinion's say is bounded more and more, until at half as much again it raises no
confidence at all, and lowers log-odds by a third at most: what is unlike all that was learned from
is no reason to be surer. With copies under other weather there is more to go by, and they may fall
by two. Selectors alone (Wang et al. 2023 route by one) gain most on images like those of the fit
and lose most elsewhere.
"""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from app.calibration.base import Calibrator, FitContext, Invariances, Share, alone, prepared
from app.calibration.changes import Changes
from app.calibration.context import (
    COARSEST,
    FARTHEST,
    ODDS_LIMIT,
    context_of,
    feature_count,
    interpolated,
    log_odds,
    step_of,
    thinned,
)
from app.calibration.context_kernel import changes_of
from app.calibration.context_selectors import Rows, Selectors, draw_rows, look, looked_at
from app.calibration.layout import BANDS, bands_of, layout_of
from app.calibration.pixel_temperature import beta_for
from app.calibration.pixelwise import uniform_where_broken
from app.calibration.sampling import count_classes, require_two_classes
from app.calibration.temperature import fit_inverse_temperature
from app.calibration.validation import ValidationSet, copies_of, split

TRUSTS = (0.0, 0.25, 0.5, 0.75)  # never the selectors alone
TRAIN_SHARE = 0.75  # of the images; the rest stops training and sets the trust
SAMPLE_FLOATS = 2**22  # of features
IMAGE_PIXELS = 1200  # pixels beyond some hundred an image teach little
COPY_PIXELS = 200
FAMILIAR = 0.75  # quantile of the distance among the images of the fit
DOUBT = 0.35  # that unfamiliar images may take from the log-odds
DOUBT_WITH_COPIES = 2 * ODDS_LIMIT  # as much as the selectors say
UNFITTED = 1e30


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
    trust: Tensor
    local: Tensor
    usual: Tensor
    spread: Tensor
    familiar: Tensor
    doubt: Tensor
    spacing: Tensor
    layout: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.selectors = Selectors(num_classes)
        self.register_buffer("beta", torch.ones(()))
        self.register_buffer("trust", torch.zeros(()))
        self.register_buffer("local", torch.ones(()))
        # The fit's images: features on average, their deviation, and how far away is familiar.
        self.register_buffer("usual", torch.zeros(feature_count(num_classes)))
        self.register_buffer("spread", torch.ones(feature_count(num_classes)))
        self.register_buffer("familiar", torch.tensor(UNFITTED))
        self.register_buffer("doubt", torch.tensor(DOUBT))
        self.register_buffer("spacing", torch.ones(()))
        self.register_buffer("layout", torch.zeros(num_classes, BANDS))
        self.step = 1  # the same as a plain number, since nothing can be sliced by a tensor
        self.register_load_state_dict_post_hook(Contextual._take_step)  # type: ignore[no-untyped-call]

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
        features, own, first, second = context_of(thinned(logs, step), self.local, self.layout)
        rows = features.movedim(1, -1).flatten(0, -2)
        opinion = self.selectors(rows, own.flatten(), first.flatten(), second.flatten()).mean(1)
        change = (opinion - own.flatten()).view_as(own)[:, None]
        familiarity = self.familiarity(features.flatten(2).mean(dim=2))
        moved = self.moderated(change, familiarity.view(-1, *[1] * (logs.ndim - 1)))
        return log_odds(logs.amax(1, keepdim=True)) + interpolated(moved, logs.shape[-2:], step)

    def step_for(self, planes: Tensor) -> int:
        """Tell how far apart the cells lie that are looked at: as in the fit, if it knew a grid."""
        return self.step or step_of(planes)

    def familiarity(self, means: Tensor) -> Tensor:
        """Mean features of images [N,F] to 1 where they are as the fit's images, down to 0."""
        distance = ((means - self.usual) / self.spread).square().mean(dim=-1).sqrt()
        return (3 - 2 * distance / self.familiar).clamp(0, 1)

    def moderated(self, change: Tensor, familiarity: Tensor) -> Tensor:
        """What the selectors' opinion moves the log-odds by, bounded where it is unfamiliar."""
        trusted = self.trust * change
        bounded = torch.maximum(trusted, -self.doubt).clamp_max(0)
        moved: Tensor = bounded + familiarity * (trusted - bounded)
        return moved

    def suspects(self, logits: Tensor) -> Tensor | None:
        """Mark the pixels that are believed to be wrong rather than right."""
        if not self.trust:
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
        if not self.trust:
            return None
        step = self.step_for(logits[None])
        cells = np.ascontiguousarray(logits.numpy()[:, ::step, ::step])
        begin, count = top // step, -(-(height or logits.shape[1]) // step)
        places = self._places(range(begin, begin + cells.shape[1]), count)
        state = self.beta.item(), self.selectors.weights(), self.local.item(), places
        change, sums = changes_of(cells, *state, share)
        return Changes(torch.from_numpy(change), torch.from_numpy(sums), step, self._settled)

    def _places(self, rows: range, count: int) -> NDArray[np.float32]:
        """Log-probabilities [n,K] of classes in some of so many rows; [0,K] without a layout."""
        if not self.layout.any():
            return np.empty((0, self.num_classes), np.float32)
        bands = bands_of(count)[rows.start : rows.stop]
        return self.layout.T[bands].contiguous().numpy()

    def _settled(self, changes: Changes, size: tuple[int, int]) -> Tensor:
        """Give the networks' part in the log-odds, float32 [h,w], as far as they are trusted."""
        moved = self.moderated(changes.change, self.familiarity(changes.means()))
        return interpolated(moved[None, None], size, changes.step)[0, 0]

    def fit(self, data: ValidationSet, context: FitContext) -> None:
        """Train on some images, stop and set the trust on the others; needs two classes.

        The temperature comes first, from all of them. Where no pixel of the training images is
        mispredicted there is nothing else to learn. A set of one image serves as both parts.
        """
        require_two_classes(count_classes(data))
        self.beta.fill_(fit_inverse_temperature(data, context))
        both = [list(range(len(data)))] * 2
        train, select = split(data, TRAIN_SHARE, context.seed) if len(data) > 1 else both
        self.local.fill_(float(data[0].labels.ndim == 2))
        self.spacing.fill_(self.local * step_of(data[0].logits[None]))
        self._take_step()
        self.trust.zero_()
        spoiled = bool(copies_of(data, 0))
        self.doubt.fill_(DOUBT_WITH_COPIES if spoiled else DOUBT)
        self.layout.zero_()
        if spoiled and self.local:
            self.layout.copy_(layout_of(data, train))
        trained, usual = self._rows(data, train, context)
        held, others = self._rows(data, select, context)
        self._remember(torch.cat([usual, others]))
        if trained.correct.all() or not len(held.odds):
            self.selectors = Selectors(self.num_classes)
            return
        self.selectors.train_on(trained, held, context)
        self.trust.fill_(self._least_trust(held))

    def summary(self) -> dict[str, float]:
        """Give the temperature, and the selectors' share in the log-odds."""
        return {"temperature": 1 / self.beta.item(), "trust": self.trust.item()}

    def _take_step(self, _keys: object = None) -> None:
        self.step = int(self.spacing.item())

    def _remember(self, means: Tensor) -> None:
        """Take the mean features of the fit's images [n,F] as what is familiar."""
        self.usual.copy_(means.mean(dim=0))
        self.spread.copy_(means.std(dim=0, correction=0).clamp_min(1e-3))
        distances = ((means - self.usual) / self.spread).square().mean(dim=1).sqrt()
        self.familiar.copy_(distances.quantile(FAMILIAR).clamp_min(1e-3))

    def _rows(
        self, data: ValidationSet, indices: list[int], context: FitContext
    ) -> tuple[Rows, Tensor]:
        """Draw pixels of images and their copies, and the images' mean features [n,F]."""
        generator = torch.Generator().manual_seed(context.seed)
        share = SAMPLE_FLOATS // (feature_count(self.num_classes) * len(indices))
        quota = min(IMAGE_PIXELS, max(share, 16))
        parts, means = [], []
        for number, index in enumerate(indices):
            context.progress("reading", number / len(indices))
            few = min(quota, COPY_PIXELS)
            views = [(data[index], quota), *((copy, few) for copy in copies_of(data, index))]
            for whole, count in views:
                image = looked_at(whole, self.step_for(whole.logits[None]))
                seen = look(image, self.beta, self.local, self.layout)
                parts.append(draw_rows(seen, image.labels, count, number, generator))
                means.append(seen.features[0].flatten(1).mean(dim=1))
        return Rows.joined(parts), torch.stack(means)

    @torch.no_grad()
    def _least_trust(self, held: Rows) -> float:
        """Find the smallest share whose loss is within a standard error (by image) of the best."""
        opinion = self.selectors(held.features, held.odds, held.first, held.second).mean(dim=1)
        losses = []
        for trust in TRUSTS:
            odds = held.odds + trust * (opinion - held.odds)
            wrongness = binary_cross_entropy_with_logits(odds, held.correct, reduction="none")
            losses.append(held.by_image(wrongness))
        best = losses[int(np.argmin([loss.mean() for loss in losses]))]
        for trust, loss in zip(TRUSTS, losses, strict=True):
            worse = loss - best
            if worse.mean() <= worse.std() / max(len(worse) - 1, 1) ** 0.5:
                return trust
        raise AssertionError("the best share is within a standard error of itself")
