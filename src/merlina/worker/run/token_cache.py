"""The token ids of a large data set in the run folder, which a resume uses instead of encoding all rows again.

The folder is valid if it has a manifest, which is written last and removed first, and its files match it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from xxhash import xxh3_128

from merlina.errors import first_line
from merlina.private_files import write_private
from merlina.schemas.inspection import Fingerprint
from merlina.schemas.training.config import TrainingConfig
from merlina.training.models.token_store import TokenStore
from merlina.version import current

_IDS, _ENDS, _ROWS, _MANIFEST = "ids", "ends.npy", "rows.npy", "manifest.json"
_LIBRARIES = ("transformers", "tokenizers", "jinja2")
_BLOCK = 1 << 20


class EncodedRows(BaseModel):
    """The contents of a store: `training` pairs, followed by those of each data set to evaluate on.

    `evaluation` has the places of the pairs of each set by its name, as the first and the one after the last.
    """

    model_config = ConfigDict(frozen=True)

    training: int
    evaluation: dict[str, tuple[int, int]]
    fingerprint: Fingerprint


class _Manifest(BaseModel):
    """`key` identifies everything that determines the ids, other than the rows; `files` are checksums by name."""

    key: str
    rows: EncodedRows
    files: dict[str, str]


@dataclass(frozen=True)
class TokenCache:
    """The folder of one run, for ids that its configuration, tokenizer and size of the vocabulary determine.

    Those of a tokenizer that is not one of the library `tokenizers` are never kept: its code determines them, too.
    """

    folder: Path
    config: TrainingConfig
    tokenizer: Any
    vocabulary_size: int

    @property
    def is_possible(self) -> bool:
        """Whether ids of this tokenizer are kept, if there are many."""
        return getattr(self.tokenizer, "backend_tokenizer", None) is not None

    def new_store(self) -> TokenStore:
        """Make the folder invalid, and return a store that uses it. Raises OSError."""
        (self.folder / _MANIFEST).unlink(missing_ok=True)
        return TokenStore(self.folder / _IDS)

    def discard(self) -> None:
        """Remove what a store that is not complete has written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self, store: TokenStore, rows: EncodedRows) -> None:
        """Complete the folder if the store uses it. Raises OSError."""
        store.close_file()
        key = self._key()
        if key is None or not store.is_in_file:
            return
        np.save(self.folder / _ENDS, store.ends)
        np.save(self.folder / _ROWS, store.rows)
        files = {name: _checksum(self.folder / name, sync=True) for name in (_IDS, _ENDS, _ROWS)}
        manifest = _Manifest(key=key, rows=rows, files=files)
        write_private(self.folder / _MANIFEST, manifest.model_dump_json().encode())

    def reopen(self, files: Fingerprint) -> tuple[TokenStore, EncodedRows] | str | None:
        """Return the store that was kept for the same `files`, of which the stamps alone are compared.

        Returns the reason if what was kept cannot be used, None if nothing was.
        """
        try:
            kept = _Manifest.model_validate_json((self.folder / _MANIFEST).read_bytes())
            if kept.key != self._key():
                return "the configuration, the model or the software has changed"
            if (kept.rows.fingerprint.file, kept.rows.fingerprint.files) != (files.file, files.files):
                return "a file of the data set has changed"
            damaged = [name for name, checksum in kept.files.items() if _checksum(self.folder / name) != checksum]
            if damaged:
                return f"{', '.join(damaged)} is damaged"
            ends, rows = (np.load(self.folder / name) for name in (_ENDS, _ROWS))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, ValueError) as error:
            return first_line(error)
        return TokenStore.reopen(self.folder / _IDS, ends, rows), kept.rows

    def _key(self) -> str | None:
        if not self.is_possible:
            return None
        backend = self.tokenizer.backend_tokenizer
        # As while it encodes.
        backend.no_truncation()
        backend.no_padding()
        tokenizer = (backend.to_str(), self.tokenizer.chat_template, self.tokenizer.special_tokens_map)
        software = (current().number, *map(version, _LIBRARIES))
        parts = repr((self.config.model_dump_json(), tokenizer, self.vocabulary_size, software))
        return xxh3_128(parts.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(file: Path, *, sync: bool = False) -> str:
    digest = xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
        if sync:
            os.fsync(stream.fileno())
    return digest.hexdigest()
