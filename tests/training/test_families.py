"""Every family of models against float64: log-probabilities and gradients, on texts longer than every window.

By default some families that stand for their kinds. With `FAMILIES=all` all that the installed transformers knows, with
`FAMILIES=gemma2,phi3` those two; `python -m tests.training.sweep` prints the numbers.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.training.families import CANNOT, families
from tests.training.sweep import measure

pytestmark = pytest.mark.slow

# Each with the logged reason if its texts are not packed.
REPRESENTATIVE: dict[str, str | None] = {
    "exaone4": None,  # keeps a window on layers that do not use it
    "gemma2": None,  # caps scores and logits, two kinds of layers
    "gemma3_text": None,  # rotary embeddings by kind of layer
    "llama4_text": None,  # chunks, layers without positions, scores scaled by position
    "deepseek_v3": None,  # latent attention, experts with a shared one
    "gpt_oss": "has attention sinks",
    "gpt2": None,  # learned positions
    "bloom": "has attention layers of its own",  # biases by distance
    "deepseek_v32": "has layers of the kind indexed_attention",
    "doge": "has layers that fail on packed texts",  # makes its masks itself
    "cpmant": "has attention layers of its own",  # padding changes what it gives
    "qwen3_next": "has layers of the kind linear_attention",
    "mamba": "has layers of the kind linear_attention",
}
_WANTED = os.environ.get("FAMILIES", ",".join(REPRESENTATIVE))
_CLOSE = 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families() if _WANTED == "all" else _WANTED.split(","))
def test_a_family_gives_what_it_gives_in_float64(family: str) -> None:
    if family in CANNOT:
        pytest.skip(CANNOT[family])
    torch.manual_seed(0)
    measured = measure(family)
    print(measured)
    assert measured.logprobs <= _CLOSE
    # Some amplify rounding; then the engine may be as far off as the model's own forward in float32, not farther.
    assert measured.gradients <= max(_CLOSE, 2 * measured.own_gradients)
    if family in REPRESENTATIVE:
        expected = REPRESENTATIVE[family]
        assert measured.reason is None if expected is None else (measured.reason or "").startswith(expected)


def test_those_left_out_are_families() -> None:
    assert set(CANNOT) <= set(families())
