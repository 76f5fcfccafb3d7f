"""Parquet files where they lie, read without pyarrow's threads.

Those let a file of Python's go some time after the table is there. Where the process ends in between, they ask for an interpreter
that is gone, and abort it: exit code 134 after all was done, in 16 of 20 short processes on a busy machine (apache/arrow, issues
33975 and 34314). So whoever reads says `use_threads=False`, too, and nobody `read_table` of a file of Python's, which reads ahead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ddpm_core import storage


def parquet_file(stream: BinaryIO | pa.BufferReader) -> pq.ParquetFile:
    """A file that is open already, and that whoever opened it closes."""
    return pq.ParquetFile(stream, pre_buffer=False)


@contextmanager
def opened_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """The file at a path or s3:// URI.

    Raises:
        FileNotFoundError: if there is none.
        pyarrow.ArrowInvalid: if it is damaged.
    """
    with storage.open_read(uri) as stream, parquet_file(stream) as file:
        yield file
