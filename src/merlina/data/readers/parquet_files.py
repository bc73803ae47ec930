"""Read rows from Parquet, with protection against files that decompress to far more than their size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from merlina.data.readers.compression import MAX_GROWTH, max_decompressed
from merlina.data.readers.data_files import DataFile, size_of
from merlina.data.readers.remote_files import RemoteContent
from merlina.data.readers.row_limit import RowLimit
from merlina.domain.units import MIB
from merlina.errors import DataError, first_line

_BATCH_ROWS = 64
_BUFFER_BYTES = 1024**2
_MAX_BATCH_BYTES = 1024**3
_MAX_VALUES_AT_ONCE = 100_000


def read_parquet(path: DataFile, limit: RowLimit, start: int = 1) -> Iterator[dict[str, Any]]:
    """Yield the rows from number `start` on in order, without reading the row groups that precede it.

    Raises DataError, which names the last readable row, if the file is damaged.
    """
    for number, batch in _small_batches(path, limit, start):
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, times outside Python's range
            raise DataError(f"The Parquet file cannot be read after row {number}: {first_line(error)}") from error
        for row in rows:
            yield {name: _finite(value) for name, value in row.items()}


def count_parquet(path: DataFile) -> int:
    """Return the number of rows that the file states. Raises DataError."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def parse_parquet(path: DataFile, limit: RowLimit) -> int:
    """Decompress and validate the whole file, and return the number of rows. Raises DataError."""
    return sum(batch.num_rows for _, batch in _small_batches(path, limit, checked=True))


def _small_batches(
    path: DataFile, limit: RowLimit, start: int = 1, *, checked: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yield batches small enough to convert to Python objects, each with the number of rows that precede it.

    The first of them begins with row `start`. Raises DataError if a row exceeds the limit.
    """
    for before, whole in _batches(path, start, checked=checked):
        number = max(before, start - 1)
        if before + whole.num_rows <= number:
            continue
        batch = whole.slice(number - before)
        limit.check_columns(batch.num_columns, "the Parquet file")
        if _decoded_size(batch) <= limit.size and _value_count(batch) <= _MAX_VALUES_AT_ONCE:
            yield number, batch
        else:
            yield from _single_rows(number, batch, limit)


def _single_rows(number: int, batch: Any, limit: RowLimit) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a large batch one by one, as `_small_batches` does. Raises DataError."""
    for before in range(number, number + batch.num_rows):
        row, place = batch.slice(before - number, 1), f"row {before + 1}"
        if _decoded_size(row) > limit.size:
            raise limit.exceeded(place)
        limit.check_values(_value_count(row), place)
        yield before, row


def _value_count(batch: Any) -> int:
    return sum(map(_values_in, batch.columns))


def _values_in(array: Any) -> int:
    """Return the number of values in an array, nested ones included.

    A list of nulls takes no bytes in Arrow, but memory in Python.
    """
    import pyarrow.types

    kind = array.type
    count = len(array)
    if pyarrow.types.is_dictionary(kind):
        return count
    if pyarrow.types.is_struct(kind):
        return count + sum(_values_in(array.field(index)) for index in range(kind.num_fields))
    if pyarrow.types.is_map(kind):
        first, last = (array.offsets[index].as_py() for index in (0, count))
        items = (child.slice(first, last - first) for child in (array.keys, array.items))
        return count + sum(map(_values_in, items))
    if hasattr(array, "flatten") and pyarrow.types.is_nested(kind):
        return count + _values_in(array.flatten())
    return count


def _batches(path: DataFile, start: int = 1, *, checked: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield batches from the row group of row `start` on, each with the number of rows that precede it."""
    import pyarrow

    decompressed = 0
    max_bytes = max_decompressed(size_of(path))
    with _opened(path) as file:
        _check_declared_sizes(file.metadata)
        number, groups = _row_groups_from(file.metadata, start)
        try:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups):
                size = _decoded_size(batch)
                decompressed += size
                if decompressed > max_bytes or size > _MAX_BATCH_BYTES:
                    raise DataError(_decompresses_to_too_much(number, decompressed))
                if checked:
                    batch.validate(full=True)
                yield number, batch
                number += batch.num_rows
            if isinstance(path, RemoteContent):
                path.check_unchanged()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"The Parquet file cannot be read after row {number}: {first_line(error)}") from error


def _row_groups_from(metadata: Any, start: int) -> tuple[int, list[int]]:
    """Return the number of rows before the row group that holds row `start`, and this group with all later ones."""
    before = 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if before + rows >= start:
            return before, list(range(index, metadata.num_row_groups))
        before += rows
    return before, []


def _decoded_size(batch: Any) -> int:
    """Return the size of a batch in bytes, with dictionary-encoded columns decoded."""
    import pyarrow

    shared = [column for column in batch.columns if isinstance(column, pyarrow.DictionaryArray)]
    return int(batch.nbytes + sum(column.dictionary_decode().nbytes for column in shared))


def _check_declared_sizes(metadata: Any) -> None:
    """Check the sizes that the file states in its metadata, before decompressing. Raises DataError."""
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = [group.column(number) for number in range(group.num_columns)]
        compressed = sum(column.total_compressed_size for column in columns)
        decompressed = sum(column.total_uncompressed_size for column in columns)
        if decompressed > max_decompressed(compressed):
            raise DataError(_decompresses_to_too_much(0, decompressed))


def _decompresses_to_too_much(row: int, size: int) -> str:
    return (
        f"The Parquet file decompresses to more than {MAX_GROWTH} times its size ({size / MIB:,.0f} MiB by "
        f"row {row}), which is refused. Write it with less repetition, or as JSONL"
    )


@contextmanager
def _opened(path: DataFile) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    # Arrow's default allocator keeps freed memory; the system's returns it.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        source = _random_access(path) if isinstance(path, RemoteContent) else path
        file = pyarrow.parquet.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"The file is not readable as Parquet: {first_line(error)}") from error
    with file:
        yield file


def _random_access(file: RemoteContent) -> BinaryIO:
    """Open the file; its end is read first. Raises DataError if its server sends it from the beginning only."""
    if not file.is_seekable:
        raise DataError(
            f"The server of {str(file.url)!r} supports no range requests, which Parquet needs; download and upload it "
            "instead"
        )
    return file.open()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
