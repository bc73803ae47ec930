"""The layout of packs: each token once, positions and targets where they belong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merlina.training.engine.packing import PackedExample, Segment, build_pack

pytestmark = pytest.mark.slow

ids = st.lists(st.integers(0, 99), min_size=1, max_size=12)
examples = st.builds(lambda prompt, first, second: PackedExample(prompt, (first, second)), ids, ids, ids)


def test_a_pack_by_hand() -> None:
    pack = build_pack(
        [PackedExample([1, 2, 3], ([4, 5], [6])), PackedExample([7], ([8], [9, 10, 11]))], with_prompt_targets=True
    )
    assert pack.input_ids.tolist() == [[1, 2, 3, 4, 7, 9, 10]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert pack.segments == (Segment(0, 4), Segment(4, 5), Segment(5, 7, 4, 5))
    assert pack.sources.tolist() == [0, 1, 2, 3, 2, 4, 4, 5, 6]
    assert pack.targets.tolist() == [2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert pack.section_ids.tolist() == [0, 0, 1, 1, 2, 4, 5, 5, 5]
    assert pack.num_tokens == (3 + 2) + (3 + 1) + (1 + 1) + (1 + 3)


@given(content=st.lists(examples, min_size=1, max_size=6))
def test_every_answer_is_predicted_once_from_its_predecessors(content: list[PackedExample]) -> None:
    pack = build_pack(content, with_prompt_targets=False)
    read, positions = pack.input_ids[0], pack.position_ids[0]
    for number, example in enumerate(content):
        for answer, expected in enumerate(example.answers, start=1):
            mine = pack.section_ids == 3 * number + answer
            assert pack.targets[mine].tolist() == expected
            sources = pack.sources[mine]
            assert read[sources].tolist() == [example.prompt[-1], *expected[:-1]]
            assert positions[sources].tolist() == list(
                range(len(example.prompt) - 1, len(example.prompt) + len(expected) - 1)
            )
    assert not (pack.section_ids % 3 == 0).any()
    assert (
        sum(segment.end - segment.begin for segment in pack.segments)
        == len(read)
        == sum(u.num_positions for u in content)
    )


def test_prompts_have_no_targets_unless_requested() -> None:
    pack = build_pack([PackedExample([1, 2, 3], ([4], [5]))], with_prompt_targets=False)
    assert torch.equal(pack.section_ids, torch.tensor([1, 2]))
