"""
The soft weight as the released code measures it (preset `reference`), without what it computes in vain.

For every encoder block one forward captures the block's output, and one with five times the rows continues from
`alpha * h` at one position; the gradient is taken with respect to the scaled output. The decoder does not run, the head
runs on the one position that is read, and parameters carry no gradient.
"""

from __future__ import annotations

import torch
from scipy.stats import pearsonr

STEPS = 5


def scores(model, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Attribution of every encoder block, `[d_model]` each. `model` is in evaluation mode and without gradients."""
    encoder, head = model.encoder, model.lm_head.weight
    position = ids.shape[1] - 2
    target = ids[0, position]
    alphas = torch.arange(STEPS, dtype=torch.float32) / STEPS
    wide_ids, wide_mask = ids.repeat(STEPS, 1), mask.repeat(STEPS, 1)
    found = []
    for block in encoder.block:
        captured = {}

        def capture(_module, _inputs, output, captured=captured):
            captured["h"] = output[0][:, position]

        handle = block.register_forward_hook(capture)
        with torch.no_grad():
            encoder(input_ids=ids, attention_mask=mask)
        handle.remove()
        h = captured["h"]
        scaled = (alphas[:, None, None] * h).flatten(0, 1).requires_grad_(True)

        def replace(_module, _inputs, output, scaled=scaled):
            hidden = output[0].clone()
            hidden[:, position] = scaled
            return (hidden, *output[1:])

        handle = block.register_forward_hook(replace)
        with torch.enable_grad():
            final = encoder(input_ids=wide_ids, attention_mask=wide_mask).last_hidden_state[:, position]
            probability = torch.softmax(final @ head.T, dim=-1)[:, target]
            (gradient,) = torch.autograd.grad(probability.sum(), scaled)
        handle.remove()
        found.append((h[0] / STEPS * gradient.sum(0)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    return found


def similarity(current: list[torch.Tensor], previous: list[torch.Tensor]) -> float:
    """Mean correlation over the blocks that vary; 0 if there is none."""
    rho = []
    for x, y in zip(current, previous, strict=True):
        x, y = x.double().numpy(), y.double().numpy()
        if x.var() > 0 and y.var() > 0:
            rho.append(pearsonr(x, y).statistic)
    return sum(rho) / len(rho) if rho else 0.0


def measure(current, previous, ids: torch.Tensor, mask: torch.Tensor) -> float:
    """rho of two models; both come back in the mode they were in."""
    modes = current.training, previous.training
    trained = [parameter for parameter in current.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    current.eval(), previous.eval()
    rho = similarity(scores(current, ids, mask), scores(previous, ids, mask))
    current.train(modes[0]), previous.train(modes[1])
    for parameter in trained:
        parameter.requires_grad_(True)
    return rho
