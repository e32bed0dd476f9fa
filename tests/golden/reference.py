"""Runs mlx-lm, the reference for output, in the float type that is asked for."""

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models import gpt_oss
from mlx_lm.utils import load_model

FLOATS = (mx.bfloat16, mx.float16, mx.float32)


@dataclass
class Run:
    """A greedy run: the tokens and, for each, the likeliest five with their logprobs."""

    tokens: list[int]
    logprobs: list[list[tuple[int, float]]]
    # Smallest distance between the likeliest and the second token of a step.
    token_margin: float
    # Smallest distance between the last expert that was taken and the first that was not, at any
    # position and layer. Below the rounding error, two correct programs may take different ones.
    router_margin: float


class Reference:
    def __init__(self, folder: Path, *, float32: bool):
        """Loads a model, with every float parameter (also the scales of affine quantization)
        cast to f32 where `float32` is set. Activations then run in f32 from the embedding on."""
        self.model, _ = load_model(Path(folder))
        if float32:
            cast = lambda p: p.astype(mx.float32) if p.dtype in FLOATS else p
            self.model.update(tree_map(cast, self.model.parameters()))
        mx.eval(self.model.parameters())

    def run(self, prompt: list[int], count: int, *, prefill: int = 2048, stop=()) -> Run:
        """Up to `count` greedy tokens, by mlx-lm's own `generate_step`: the prompt but its last
        token in chunks of `prefill`, then one token at a time. A token of `stop` is the last."""
        run = Run([], [], float("inf"), float("inf"))
        margins = []
        restore = _record_router_margins(margins)
        try:
            for token, logprobs in generate_step(
                mx.array(prompt, mx.uint32),
                self.model,
                max_tokens=count,
                prefill_step_size=prefill,
                # Whatever the model's type is, the softmax is taken in f32.
                logits_processors=[lambda _, logits: logits.astype(mx.float32)],
            ):
                assert logprobs.dtype == mx.float32
                best = mx.argsort(-logprobs)[:5]
                values = logprobs[best].tolist()
                run.tokens.append(token)
                run.logprobs.append(list(zip(best.tolist(), values)))
                run.token_margin = min(run.token_margin, values[0] - values[1])
                if token in stop:
                    break
        finally:
            restore()
        mx.eval(margins)
        run.router_margin = min((m.item() for m in margins), default=float("inf"))
        return run


def _record_router_margins(margins: list):
    """Makes mlx-lm's choice of experts leave its margins in `margins`; returns the way back."""
    original = gpt_oss.mlx_topk

    def topk(a, k, axis=-1):
        if k < a.shape[axis]:
            ordered = mx.sort(a, axis=axis)
            margins.append((ordered[..., -k] - ordered[..., -k - 1]).min())
        return original(a, k, axis=axis)

    gpt_oss.mlx_topk = topk

    def restore():
        gpt_oss.mlx_topk = original

    return restore
