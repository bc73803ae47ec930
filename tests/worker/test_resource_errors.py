"""A full disk and a lack of memory have the same message from every library."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from merlina.errors import ModelError
from merlina.run_folder.folder import RunFolder
from merlina.training.models.model_files import readable_errors
from merlina.worker.resource_errors import disk_is_full
from merlina.worker.run.run import describe_error

pytestmark = pytest.mark.slow

# As raised on a full tmpfs by safetensors 0.8.
NO_SPACE = "Error while serializing: I/O error: No space left on device (os error 28)"


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_incomplete_checkpoint_is_reported_as_a_full_disk(tmp_path: Path) -> None:
    weights = torch.zeros(10**5)
    with files_no_larger_than(4096), pytest.raises(RuntimeError) as raised:
        torch.save(weights, tmp_path / "optimizer.pt")
    assert "run could not be written. Free some space" in describe_error(raised.value, RunFolder(Path("run")))


@pytest.mark.parametrize("error", [SafetensorError(NO_SPACE), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))])
def test_weights_that_do_not_fit_are_reported_as_a_full_disk_also_during_a_conversion(error: Exception) -> None:
    folder = RunFolder(Path("run"))
    assert (
        describe_error(error, folder)
        == "The disk is full: run could not be written. Free some space, then resume or retry"
    )
    with pytest.raises(ModelError) as raised, readable_errors("a.gguf"):
        raise error
    assert "the model's files could not be written" in describe_error(raised.value, folder)


@pytest.mark.parametrize("while_loading", [False, True])
def test_a_lack_of_ram_is_reported_with_settings_that_need_less(while_loading: bool) -> None:
    loading = readable_errors("a model") if while_loading else contextlib.nullcontext()
    with pytest.raises((RuntimeError, ModelError)) as raised, loading:
        torch.empty(10**15)
    assert describe_error(raised.value, RunFolder(Path("run"))).startswith(
        "The run needs more memory than is available. In order"
    )


def test_a_damaged_file_is_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"PK\x03\x04" + bytes(1000))
    for read in (torch.load, load_file):
        with pytest.raises((RuntimeError, SafetensorError)) as raised:
            read(file)
        assert not disk_is_full(raised.value)
