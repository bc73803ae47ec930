"""Rows of a data set on the Hugging Face Hub, by its own client: streamed, or kept for the next time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from merlina.data.row_limit import RowLimit
from merlina.errors import DataError, first_line
from merlina.hub_errors import check_access, describe_hub_error, is_access_denied

_USUAL_LIMIT = RowLimit()


def read_hub_rows(
    repo_id: str, split: str, token: str | None, *, keep: bool, limit: RowLimit = _USUAL_LIMIT
) -> Iterator[dict[str, Any]]:
    """Rows of one split in order; with `keep`, all of it is downloaded first, and is there offline from then on.

    Raises DataError where it isn't there, may not be read or can't be reached, or where a row exceeds the limit.
    """
    from datasets import load_dataset

    check_not_a_folder(repo_id)
    try:
        _stop_where_refused(repo_id, token)
        # Only what was kept can be read offline; a stream leaves nothing behind.
        streaming = not keep and not constants.is_offline_mode()
        rows = load_dataset(repo_id, split=split, streaming=streaming, token=token or False)
        for number, row in enumerate(rows, start=1):
            limit.check_row(row, f"row {number}")
            yield row
    except Exception as error:  # the clients let errors of their HTTP libraries through, whichever those are
        words = _in_words(error, repo_id, token)
        if words is None:
            raise
        raise DataError(words) from error


def _stop_where_refused(repo_id: str, token: str | None) -> None:
    """Raises where the Hub says no; `datasets` would go on to rows that someone else's run left in the cache."""
    try:
        check_access(repo_id, "dataset", token or False)
    except Exception as error:
        if is_access_denied(error):
            raise


def _in_words(error: Exception, repo_id: str, token: str | None) -> str | None:
    """None for errors that are not about this data set, such as a full disk."""
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError

    if words := describe_hub_error(error, repo_id, "dataset", token_given=token is not None):
        return words
    if isinstance(error, DataFilesNotFoundError):
        return f"The data set {repo_id!r} has no files that can be read as rows"
    if isinstance(error, DatasetGenerationError):
        cause = error.__cause__ or error
        return None if _is_of_this_machine(cause) else f"The data set {repo_id!r} can't be read: {first_line(cause)}"
    if isinstance(error, ValueError):
        return f"The data set {repo_id!r} can't be read: {first_line(error)}"
    if isinstance(error, OSError) and not _is_of_this_machine(error):
        return f"The Hub can't be reached to read {repo_id!r} ({type(error).__name__})"
    return None


def _is_of_this_machine(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)


def count_hub_rows(repo_id: str, split: str, token: str | None) -> int | None:
    """Rows of one split, from the card or the Parquet files' own footers; None where only a download would tell."""
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
    """Raises DataError for a folder, which the Hub's client takes for a data set, wherever it lies."""
    if os.path.exists(repo_id):
        raise DataError(f"{repo_id!r} is a folder on the server's machine, not a data set on the Hub; use local_file")


def _rows_in_parquet(address: str, token: str | None) -> int:
    import pyarrow.parquet
    from huggingface_hub import HfFileSystem

    with HfFileSystem(token=token or False).open(address) as file:
        return int(pyarrow.parquet.ParquetFile(file).metadata.num_rows)
