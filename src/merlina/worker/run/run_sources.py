"""The sources of a run's rows, opened with the files that the server resolved."""

from __future__ import annotations

from pathlib import Path

from merlina.data.dataset import ChainedRows, located, read_sources
from merlina.data.fingerprint import stamp
from merlina.data.readers.data_files import DataFile, file_at
from merlina.data.readers.row_limit import RowLimit
from merlina.data.readers.sources import describe_encoding
from merlina.data.row_formats.registry import ROW_FORMATS
from merlina.domain.data_urls import RemoteFile
from merlina.errors import DataError
from merlina.run_folder.order import RunOrder
from merlina.schemas.datasets.config import DatasetPart
from merlina.schemas.inspection import FileStamp
from merlina.training.reporter import Reporter, StoppedEarly

# The key of the first source in `RunSources.stamps`.
FIRST = "first"


class RunSources:
    """Opens the sources to train on and the data sets to evaluate on, and reports how they are read.

    `conversion_rules` is the version of the rules by which rows become pairs.
    """

    def __init__(self, order: RunOrder, token: str | None, reporter: Reporter, conversion_rules: int) -> None:
        self._order = order
        self._token = token
        self._reporter = reporter
        self.conversion_rules = conversion_rules
        dataset = order.config.dataset
        self.training_parts = dataset.training_parts
        self.eval_parts = dataset.eval_parts

    @property
    def are_files(self) -> bool:
        """Whether all sources are files, which have stamps that change with them."""
        return all(self._file(part) is not None for part in (*self.training_parts, *self.eval_parts))

    def stamps(self) -> dict[str, FileStamp]:
        """Return the stamps of all files that exist: of the first source by FIRST, of others by their field."""
        first, *others = (*self.training_parts, *self.eval_parts)
        files = {FIRST: self._file(first), **{part.location: self._file(part) for part in others}}
        return {name: stamp(file) for name, file in files.items() if file is not None and file.is_file()}

    def open(self) -> tuple[ChainedRows, list[ChainedRows]]:
        """Open all sources: those to train on as one, and each data set to evaluate on.

        Raises DataError, and StoppedEarly if a stop is requested while a server is awaited, as reading the rows does.
        """
        parts = [*self.training_parts, *self.eval_parts]
        sources = [located(part, self._existing_file(part)) for part in parts]
        for source in sources:
            for note in describe_encoding(source.config.source, source.file):
                self._reporter.note("warning", note)
        count = len(self.training_parts)
        training, evaluation = read_sources(
            sources[:count],
            sources[count:],
            self._token,
            answers_needed=self._order.config.answers_needed,
            download=True,
            limit=RowLimit.of_megabytes(self._order.max_row_mb),
            rules=self.conversion_rules,
        )
        opened = [*training.conversions, *(rows.conversions[0] for rows in evaluation)]
        for part, conversion in zip(parts, opened, strict=True):
            how = "detected" if part.config.row_format is None else "set by row_format"
            if conversion.detected is not None or how != "detected":
                title = ROW_FORMATS[conversion.row_format].title
                self._reporter.note("info", f"Format of the rows{self._of(part)}: {title} ({how})")
        return training, evaluation

    def _of(self, part: DatasetPart) -> str:
        """Return the name of the source as the end of a phrase; empty if there is only one."""
        return f" of {part.name}" if len(self.training_parts) + len(self.eval_parts) > 1 else ""

    def _existing_file(self, part: DatasetPart) -> DataFile | None:
        if part.config.source.source_type == "url":
            address = RemoteFile(str(part.config.source.url), self._order.allowed_data_urls)
            return file_at(address, self._raise_if_stopped)
        file = self._file(part)
        if file is not None and not file.is_file():
            raise DataError(f"The data set's file {file} no longer exists; upload it again and start a new run")
        return file

    def _raise_if_stopped(self) -> None:
        if self._reporter.should_stop():
            raise StoppedEarly

    def _file(self, part: DatasetPart) -> Path | None:
        order = self._order
        is_first = part.location in ("source", "sources.0")
        file = order.dataset_file if is_first else order.source_files.get(part.location)
        return Path(file) if file else None
