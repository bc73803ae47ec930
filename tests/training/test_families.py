"""Log-probabilities and gradients of model families, compared with float64 on texts longer than every window.

By default one family of each kind is tested; `FAMILIES=all` tests all families of the installed transformers, and
`FAMILIES=gemma2,phi3` these two. `python -m tests.training.sweep` prints the errors.
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
    "doge": "has layers that fail on packed texts",  # builds its masks itself
    "cpmant": "has attention layers of its own",  # padding changes its results
    "qwen3_next": "has layers of the kind linear_attention",
    "mamba": "has layers of the kind linear_attention",
}
_WANTED = os.environ.get("FAMILIES", ",".join(REPRESENTATIVE))
_CLOSE = 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families() if _WANTED == "all" else _WANTED.split(","))
def test_a_family_gives_the_same_results_as_in_float64(family: str) -> None:
    if family in CANNOT:
        pytest.skip(CANNOT[family])
    torch.manual_seed(0)
    measured = measure(family)
    print(measured)
    assert measured.logprobs <= _CLOSE
    # Some families amplify rounding errors. Then the model's own forward pass in float32 is the measure.
    assert measured.gradients <= max(_CLOSE, 3 * measured.own_gradients)
    if family in REPRESENTATIVE:
        expected = REPRESENTATIVE[family]
        assert measured.reason is None if expected is None else (measured.reason or "").startswith(expected)


def test_excluded_families_exist() -> None:
    assert set(CANNOT) <= set(families())
