"""Read rows of a data set on the Hugging Face Hub, streamed or downloaded into the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from merlina.data.readers.row_limit import RowLimit
from merlina.errors import DataError, first_line
from merlina.hub_errors import describe_hub_error, is_access_denied, is_unknown_revision
from merlina.hub_repositories import check_access
from merlina.schemas.datasets.sources import DatasetSource

_USUAL_LIMIT = RowLimit()
_NAMES_SHOWN = 50
_MAX_FOOTERS = 100
# A split by its name, rather than a part of it or a sum of several.
_SPLIT_NAME = re.compile(r"[^\[+]+")


def read_hub_rows(
    source: DatasetSource, token: str | None, *, download: bool, limit: RowLimit = _USUAL_LIMIT
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split in order. With `download`, download it first, so that it can later be read offline.

    Raises DataError if the data set, configuration, revision, files or split do not exist, cannot be accessed or
    reached, or if a row exceeds the limit.
    """
    check_not_a_folder(str(source.repo_id))
    try:
        _raise_if_denied(str(source.repo_id), token)
        for number, row in enumerate(_open_rows(source, token, download), start=1):
            limit.check_row(row, f"row {number}")
            yield row
    except Exception as error:  # the clients raise errors of the HTTP library that they use
        message = _describe_error(error, source, token)
        if message is None:
            raise
        raise DataError(message) from error


def _open_rows(source: DatasetSource, token: str | None, download: bool) -> Any:
    """Return the rows of a split, as `datasets` iterates over them."""
    builder = _load_builder(source, token)
    splits = list(builder.config.data_files or builder.info.splits or ())
    if splits and _SPLIT_NAME.fullmatch(source.split) and source.split not in (*splits, "all"):
        raise DataError(
            f"The data set {source.repo_id!r} has no split {source.split!r}; set source.split to {_one_of(splits)}"
        )
    # A stream caches nothing, so that offline only downloaded data sets can be read.
    if not download and not constants.is_offline_mode():
        return builder.as_streaming_dataset(split=source.split)
    builder.download_and_prepare()
    return builder.as_dataset(split=source.split)


def _load_builder(source: DatasetSource, token: str | None) -> Any:
    """Return the builder of `datasets` for the configuration, revision and files that the source names."""
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(
            str(source.repo_id),
            name=source.config_name,
            revision=source.revision,
            data_files=source.data_files,
            token=token or False,
        )
    except ValueError as error:
        if message := _describe_configs(error, source, token):
            raise DataError(message) from error
        raise
    _check_cached_revision(builder, source)
    return builder


def _describe_configs(error: ValueError, source: DatasetSource, token: str | None) -> str | None:
    """Return a message that lists the configurations if the error is about a missing or unknown one."""
    from datasets import get_dataset_config_names

    if not str(error).startswith(("Config name is missing", "BuilderConfig ")):
        return None
    names = get_dataset_config_names(str(source.repo_id), revision=source.revision, token=token or False)
    problem = f"has no configuration {source.config_name!r}" if source.config_name else "has several configurations"
    return f"The data set {source.repo_id!r} {problem}; set source.config_name to {_one_of(names)}"


def _one_of(names: list[str]) -> str:
    shown = ", ".join(map(str, names[:_NAMES_SHOWN]))
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return f"one of: {shown}{more}" if len(names) > 1 else shown


def _check_cached_revision(builder: Any, source: DatasetSource) -> None:
    """Raise DataError if the builder reads a cached copy of another revision, or of one that is not known.

    Without the Hub, `datasets` takes the newest copy; its `hash` is its commit.
    """
    is_cached = type(builder).__module__ == "datasets.packaged_modules.cache.cache"
    if is_cached and source.revision is not None and builder.hash != source.revision:
        raise DataError(
            f"The Hub is not available to look up revision {source.revision!r} of {source.repo_id!r}, and the newest "
            f"copy in this machine's cache is of commit {builder.hash}. Set source.revision to that commit to read it"
        )


def _raise_if_denied(repo_id: str, token: str | None) -> None:
    """Raise the Hub's error if it denies access; `datasets` would fall back to rows that another run has cached."""
    try:
        check_access(repo_id, "dataset", token or False)
    except Exception as error:
        if is_access_denied(error):
            raise


def _describe_error(error: Exception, source: DatasetSource, token: str | None) -> str | None:
    """Return a message for the user; None for errors unrelated to this data set, such as a full disk."""
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError

    repo_id = str(source.repo_id)
    if is_unknown_revision(error):
        return f"The data set {repo_id!r} has no revision {source.revision!r}; use a branch, a tag or a commit id"
    if message := describe_hub_error(error, repo_id, "dataset", token_given=token is not None):
        return message
    if source.data_files is not None and _finds_no_files(error):
        files = f"files that match source.data_files {source.data_files!r}"
        return f"The data set {repo_id!r} has no {files}, or the Hub cannot be reached to list them"
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


def _finds_no_files(error: Exception) -> bool:
    """Return whether no file matched: `datasets` then looks for a cached copy, as if the Hub could not be reached."""
    is_online = not constants.is_offline_mode()
    not_cached = isinstance(error, ValueError) and str(error).startswith("Couldn't find cache")
    return is_online and (not_cached or (isinstance(error, FileNotFoundError) and error.errno is None))


def _is_local_error(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)


def count_hub_rows(source: DatasetSource, token: str | None) -> int | None:
    """Return the number of rows in a split from its card or its Parquet footers; None if it would take a download."""
    check_not_a_folder(str(source.repo_id))
    try:
        builder = _load_builder(source, token)
        stated = (builder.info.splits or {}).get(source.split)
        if stated is not None and stated.num_examples:
            return int(stated.num_examples)
        files = list((builder.config.data_files or {}).get(source.split, ()))
        if not files or len(files) > _MAX_FOOTERS or not all(str(file).endswith(".parquet") for file in files):
            return None
        return sum(_rows_in_parquet(str(file), token) for file in files)
    except (HfHubHTTPError, OSError, ValueError, DataError):
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
