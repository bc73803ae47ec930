"""Rows of a data set on the Hugging Face Hub, streamed by its own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from merlina.errors import DataError


def read_hub_rows(repo_id: str, split: str, token: str | None) -> Iterator[dict[str, Any]]:
    """Rows of one split in order. Raises DataError where it isn't there, may not be read or can't be reached."""
    from datasets import load_dataset
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    try:
        yield from load_dataset(repo_id, split=split, streaming=True, token=token or False)
    except (DatasetNotFoundError, RepositoryNotFoundError, GatedRepoError) as error:
        hint = "the hf_token given can't see it" if token else "if it is private or gated, give a hf_token"
        raise DataError(f"There is no data set {repo_id!r} on the Hub: {hint}") from error
    except DataFilesNotFoundError as error:
        raise DataError(f"The data set {repo_id!r} has no files that can be read as rows") from error
    except ValueError as error:
        raise DataError(f"The data set {repo_id!r} can't be read: {str(error).splitlines()[0]}") from error
    except (HfHubHTTPError, OSError) as error:
        raise DataError(f"The Hub can't be reached to read {repo_id!r} ({type(error).__name__})") from error
