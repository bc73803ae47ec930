"""The token cache: the token ids of a large data set in the run folder, which a resume uses instead of encoding again.

The cache is valid if it has a manifest, which is written last and removed first, and its files match it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from xxhash import xxh3_128

from merlina.checkpoints import sync
from merlina.checksums import checksum
from merlina.errors import first_line
from merlina.private_files import write_private
from merlina.schemas.inspection import Fingerprint
from merlina.schemas.training.config import TrainingConfig
from merlina.training.models.token_store import TokenStore
from merlina.version import current

_IDS, _ENDS, _ROWS, _MANIFEST = "ids", "ends.npy", "rows.npy", "manifest.json"
_LIBRARIES = ("transformers", "tokenizers", "jinja2")


class EncodedRows(BaseModel):
    """The contents of a store: `training` pairs, followed by those of each data set to evaluate on.

    `evaluation` has the range of each set's pairs in the store by its name: the first index, and one after the last.
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
    """The token cache of one run, for ids that its configuration, tokenizer and size of the vocabulary determine.

    Token ids of tokenizers outside the library `tokenizers` are never stored, because their Python code also determines
    them.
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
        """Make the cache invalid, and return a store that uses it. Raises OSError."""
        (self.folder / _MANIFEST).unlink(missing_ok=True)
        return TokenStore(self.folder / _IDS)

    def discard(self) -> None:
        """Remove what an incomplete store has written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, store: TokenStore, rows: EncodedRows) -> None:
        """Complete the cache with `rows`, the contents of the store, if the store uses its file. Raises OSError."""
        store.close_file()
        key = self._key()
        if key is None or not store.is_in_file:
            return
        np.save(self.folder / _ENDS, store.ends)
        np.save(self.folder / _ROWS, store.rows)
        files = (_IDS, _ENDS, _ROWS)
        for name in files:
            sync(self.folder / name)
        manifest = _Manifest(key=key, rows=rows, files={name: checksum(self.folder / name) for name in files})
        write_private(self.folder / _MANIFEST, manifest.model_dump_json().encode())

    def reopen(self, files: Fingerprint) -> tuple[TokenStore, EncodedRows] | str | None:
        """Return the cached store and its contents, if `files` has the stamps and the rules that it was made with.

        Returns the reason if the cache cannot be used, None if there is none.
        """
        try:
            cached = _Manifest.model_validate_json((self.folder / _MANIFEST).read_bytes())
            made_from = cached.rows.fingerprint
            if cached.key != self._key() or made_from.conversion_rules != files.conversion_rules:
                return "the configuration, the model or the software has changed"
            if (made_from.file, made_from.files) != (files.file, files.files):
                return "a file of the data set has changed"
            damaged = [name for name, expected in cached.files.items() if checksum(self.folder / name) != expected]
            if damaged:
                return f"{', '.join(damaged)} is damaged"
            ends, rows = (np.load(self.folder / name) for name in (_ENDS, _ROWS))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, ValueError) as error:
            return first_line(error)
        return TokenStore.reopen(self.folder / _IDS, ends, rows), cached.rows

    def _key(self) -> str | None:
        if not self.is_possible:
            return None
        backend = self.tokenizer.backend_tokenizer
        # Encoding sets the same options; they are part of the tokenizer's text.
        backend.no_truncation()
        backend.no_padding()
        tokenizer = (backend.to_str(), self.tokenizer.chat_template, self.tokenizer.special_tokens_map)
        software = (current().number, *map(version, _LIBRARIES))
        parts = repr((self.config.model_dump_json(), tokenizer, self.vocabulary_size, software))
        return xxh3_128(parts.encode("utf-8", "surrogatepass")).hexdigest()
