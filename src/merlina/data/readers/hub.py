"""Read rows of a data set on the Hugging Face Hub, streamed or downloaded into the cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from merlina.data.readers.row_limit import RowLimit
from merlina.errors import DataError, first_line
from merlina.hub_errors import check_access, describe_hub_error, is_access_denied

_USUAL_LIMIT = RowLimit()


def read_hub_rows(
    repo_id: str, split: str, token: str | None, *, download: bool, limit: RowLimit = _USUAL_LIMIT
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split in order. With `download`, download it first, so that it can later be read offline.

    Raises DataError if the data set does not exist, cannot be accessed or reached, or if a row exceeds the limit.
    """
    from datasets import load_dataset

    check_not_a_folder(repo_id)
    try:
        _raise_if_denied(repo_id, token)
        # A stream caches nothing, so that offline only downloaded data sets can be read.
        streaming = not download and not constants.is_offline_mode()
        rows = load_dataset(repo_id, split=split, streaming=streaming, token=token or False)
        for number, row in enumerate(rows, start=1):
            limit.check_row(row, f"row {number}")
            yield row
    except Exception as error:  # the clients raise errors of whichever HTTP library they use
        message = _describe_error(error, repo_id, token)
        if message is None:
            raise
        raise DataError(message) from error


def _raise_if_denied(repo_id: str, token: str | None) -> None:
    """Raise the Hub's error if it denies access; `datasets` would fall back to rows that another run has cached."""
    try:
        check_access(repo_id, "dataset", token or False)
    except Exception as error:
        if is_access_denied(error):
            raise


def _describe_error(error: Exception, repo_id: str, token: str | None) -> str | None:
    """Return a message for the user; None for errors unrelated to this data set, such as a full disk."""
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError

    if message := describe_hub_error(error, repo_id, "dataset", token_given=token is not None):
        return message
    if isinstance(error, DataFilesNotFoundError):
        return f"The data set {repo_id!r} has no files that can be read as rows"
    if isinstance(error, DatasetGenerationError):
        cause = error.__cause__ or error
        return None if _is_local_error(cause) else f"The data set {repo_id!r} cannot be read: {first_line(cause)}"
    if isinstance(error, ValueError):
        return f"The data set {repo_id!r} cannot be read: {first_line(error)}"
    if isinstance(error, OSError) and not _is_local_error(error):
        return f"The Hub cannot be reached to read {repo_id!r} ({type(error).__name__})"
    return None


def _is_local_error(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)


def count_hub_rows(repo_id: str, split: str, token: str | None) -> int | None:
    """Return the number of rows in a split from its card or its Parquet footers; None if it would take a download."""
    from datasets import load_dataset_builder

    check_not_a_folder(repo_id)
    try:
        builder = load_dataset_builder(repo_id, token=token or False)
        stated = (builder.info.splits or {}).get(split)
        if stated is not None and stated.num_examples:
            return int(stated.num_examples)
        files = list((builder.config.data_files or {}).get(split, ()))
        if not files or not all(str(file).endswith(".parquet") for file in files):
            return None
        return sum(_rows_in_parquet(str(file), token) for file in files)
    except (HfHubHTTPError, OSError, ValueError):
        return None


def check_not_a_folder(repo_id: str) -> None:
    """Raise DataError if `repo_id` is a local folder, which `datasets` would read without asking the Hub."""
    if os.path.exists(repo_id):
        raise DataError(f"{repo_id!r} is a folder on the server's machine, not a data set on the Hub; use local_file")


def _rows_in_parquet(address: str, token: str | None) -> int:
    import pyarrow.parquet
    from huggingface_hub import HfFileSystem

    with HfFileSystem(token=token or False).open(address) as file:
        return int(pyarrow.parquet.ParquetFile(file).metadata.num_rows)
