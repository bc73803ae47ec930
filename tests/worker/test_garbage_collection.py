from __future__ import annotations

import gc

import pytest

from merlina.worker.garbage_collection import rare_collections


def test_the_collector_is_as_before_after_an_error() -> None:
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before
    with pytest.raises(OSError, match="disk"), rare_collections():
        raise OSError("disk")
    assert gc.get_threshold() == before
