"""Mask classifiers, as Mask2Former, OneFormer and EoMT: scores of queries to logits of classes.

Query q has class probabilities p(q,c), "no object" among them, and a mask m(q) in logits. The
score of class c is S(c) = sum over q of p(q,c) sigmoid(m(q)), without "no object" (Cheng et al.,
"Masked-attention mask transformer", CVPR 2022). Its logarithm is the logit.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.errors import ModelError
from app.inference.outputs import MIN_PROBABILITY
from app.inference.preprocess import Size

MAX_LOG_ODDS = 80.0  # of a mask; exp(88) is the largest in single precision


def log_scores(scores: Tensor) -> Tensor:
    """Return log max(S, 1e-6) of scores."""
    return scores.clamp_min(MIN_PROBABILITY).log()


def mask_probabilities(masks: Tensor) -> Tensor:
    """Compute sigmoid(m) of masks, with a small relative error in ONNX Runtime too.

    The Sigmoid of ONNX Runtime has an absolute error of 1e-7: at S = 1e-5 that is 0.01 of log S.
    """
    odds = masks.clamp_max(MAX_LOG_ODDS).exp()
    return odds / (1 + odds)


class MaskClassifier(nn.Module):
    """Compute logits log max(S, 1e-6) and the mass, the sum of S over classes, of each cell.

    A mass near zero means that no query claims the pixel. `grid` is the height and width to which
    masks are interpolated before their sigmoid, as in the network's own postprocessing; None keeps
    the masks' grid. `tokens` are OneFormer's constant task tokens.
    """

    def __init__(self, network: Any, grid: Size | None, tokens: Tensor | None) -> None:
        super().__init__()
        self.network, self.grid = network, grid
        self.tokens: Tensor | None
        self.register_buffer("tokens", tokens)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N,3,H,W] to logits [N,K,h,w] and mass [N,1,h,w]."""
        named = {} if self.tokens is None else {"task_inputs": self.tokens}
        outputs = self.network(pixel_values=image, **named)
        masks = outputs.masks_queries_logits
        if self.grid is not None:
            masks = F.interpolate(masks, self.grid, mode="bilinear")
        classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
        scores = torch.einsum("bqc,bqhw->bchw", classes, mask_probabilities(masks))
        return log_scores(scores), scores.sum(dim=1, keepdim=True)


def without_random_masks(network: Any) -> None:
    """Remove EoMT's masked attention, which is annealed away during training.

    Raises ModelError for a network whose probabilities of masking are not 0: it draws random
    numbers for each image.
    """
    probabilities = network.attn_mask_probs.tolist()
    if any(probabilities):
        raise ModelError(f"expected attn_mask_probs of 0 in a trained EoMT, got {probabilities}")
    del network.attn_mask_probs
    network.attn_mask_probs = probabilities  # constants, so that the exporter drops the branches
