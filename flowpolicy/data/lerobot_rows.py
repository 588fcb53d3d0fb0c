"""Rows of a LeRobot folder: which of a parquet file are an episode's, whatever its table says of their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.data.lerobot_meta import INFO, EpisodePlace, LeRobotFolder

_BLOCK = 64 << 20  # bytes of columns that are read at a time
_TIMES = ("episode_index", "frame_index", "timestamp", "task_index")

Columns = dict[str, NDArray[Any]]


class LeRobotRows:
    """Numbers of the chosen episodes, one parquet file after the other, a block of row groups at a time.

    Args:
        folder: the folder.
        episodes: the chosen ones.
        columns: features that are read beside the numbers of rows, with how many numbers each has in a row.

    """

    def __init__(self, folder: LeRobotFolder, episodes: Sequence[EpisodePlace], columns: dict[str, int]) -> None:
        self._folder, self._columns = folder, columns
        self._chosen = {episode.number for episode in episodes}
        self._file: tuple[str, Any] = ("", None)
        self._held: dict[int, Columns] = {}
        self.remarks: list[str] = []
        """What had to be mended, as it is met."""

    def names(self, file: str) -> list[str]:
        """Columns of a file."""
        return list(self._opened(file).schema_arrow.names)

    def read(self, episode: EpisodePlace) -> Columns:
        """Columns of an episode, in the order of its frames, (T,) or (T, d)."""
        self._opened(episode.data)  # what is held of another file is forgotten
        if episode.number not in self._held:
            self._fill(episode)
        rows = self._held.pop(episode.number, {name: np.empty(0) for name in ("frame_index", *self._columns)})
        return self._in_order(episode, rows)

    def spans(self, file: str) -> list[tuple[int, int]] | None:
        """Smallest and largest number of an episode in every row group, from the footer; None where it says nothing."""
        opened = self._opened(file)
        with self._folder.reading(file):
            found = []
            names = [opened.metadata.schema.column(k).path for k in range(opened.metadata.num_columns)]
            if "episode_index" not in names:
                return None
            place = names.index("episode_index")
            for group in range(opened.metadata.num_row_groups):
                stats = opened.metadata.row_group(group).column(place).statistics
                if stats is None or not stats.has_min_max:
                    return None
                found.append((int(stats.min), int(stats.max)))
            return found

    def _opened(self, file: str) -> Any:
        if self._file[0] != file:
            self._file, self._held = (file, self._folder.open_parquet(file)), {}
        return self._file[1]

    def _fill(self, first: EpisodePlace) -> None:
        """Hold the rows of an episode and of those that stand beside it, as far as a block reaches."""
        name, file = first.data, self._opened(first.data)
        spans = self.spans(name) or [(0, 1 << 40)] * file.metadata.num_row_groups
        groups = [k for k, (low, high) in enumerate(spans) if low <= first.number <= high]
        with self._folder.reading(name):
            if groups:  # and the next ones, if they are wanted too
                size = sum(file.metadata.row_group(k).total_byte_size for k in groups)
                for group in range(groups[-1] + 1, len(spans)):
                    size += file.metadata.row_group(group).total_byte_size
                    low, high = spans[group]
                    if size > _BLOCK or high - low > 10_000 or not self._chosen.intersection(range(low, high + 1)):
                        break
                    groups.append(group)
            there = set(file.schema_arrow.names)
            missing = [column for column in self._columns if column not in there]
            if missing:
                raise self._folder.error(f"{name} has no column {missing[0]}", expected=", ".join(sorted(there))[:200])
            wanted = [*self._columns, *(column for column in _TIMES if column in there and column not in self._columns)]
            table = file.read_row_groups(groups, columns=wanted) if groups else file.schema_arrow.empty_table()
            columns = {c: self._matrix(table.column(c), c, name) for c in wanted}
        whole = {
            number
            for number in self._chosen
            if all(k in groups for k, (low, high) in enumerate(spans) if low <= number <= high)
        }
        self._held = self._sorted_out(first, columns, whole | {first.number}, every=len(groups) == len(spans))

    def _sorted_out(self, first: EpisodePlace, columns: Columns, wanted: set[int], every: bool) -> dict[int, Columns]:
        """Rows by episode; of a file without numbers of episodes all rows are the episode's own."""
        numbers = columns.get("episode_index")
        if numbers is None:
            if self._folder.version == "v3.0":
                raise self._folder.error(f"{first.data} has no column episode_index")
            return {first.number: columns}
        borders = np.flatnonzero(np.diff(numbers)) + 1
        found: dict[int, list[slice]] = {}
        for start, end in zip([0, *borders.tolist()], [*borders.tolist(), len(numbers)], strict=True):
            if end > start:
                found.setdefault(int(numbers[start]), []).append(slice(start, end))
        if self._folder.version != "v3.0" and every and (others := sorted(set(found) - {first.number})):
            self.remarks.append(
                f"holds rows of episode_{others[0]:06d} in {first.data}, the file of {first.name}; they are left out"
            )
        return {
            number: {name: np.concatenate([value[part] for part in parts]) for name, value in columns.items()}
            for number, parts in found.items()
            if number in wanted
        }

    def _in_order(self, episode: EpisodePlace, rows: Columns) -> Columns:
        """The first rows, which must be the frames from 0 on; what stands behind them is another's."""
        count, length = len(next(iter(rows.values()))), episode.length
        frames = rows.get("frame_index", np.arange(count))
        if count >= length and not np.array_equal(frames[:length], np.arange(length)):
            order = np.argsort(frames, kind="stable")
            if np.array_equal(frames[order][:length], np.arange(length)) and count == length:
                self.remarks.append(f"holds the rows of {episode.name} out of order; they were put in order")
                rows, frames = {name: value[order] for name, value in rows.items()}, frames[order]
        wrong = np.flatnonzero(frames[:length] != np.arange(min(count, length)))
        if count < length or wrong.size:
            step = int(wrong[0]) if wrong.size else count
            raise self._folder.error(
                f"{episode.data} holds {count} rows of {episode.name}, frame {step} is not there",
                expected=f"{length} rows, frames 0 to {length - 1}",
                fix="record, convert or copy the episode again; or leave it out: --data.filter-key says which to use",
            )
        if count > length:
            self.remarks.append(
                f"holds {count} rows of {episode.name} in {episode.data}, and its table says {length}: those behind "
                "are left out"
            )
        return {name: value[:length] for name, value in rows.items()}

    def _matrix(self, column: Any, name: str, file: str) -> NDArray[Any]:
        """Numbers of a column, (n,), or (n, d) where a row holds a list of them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        where, rows, nested = f"{file}: {name}", len(column), False
        array = column.combine_chunks()
        array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
        while True:
            if array.null_count:
                row = int(np.flatnonzero(np.asarray(array.is_null()))[0]) * rows // max(len(array), 1)
                raise self._folder.error(f"{where} holds nothing in row {row}", expected="numbers in every row")
            if not _is_list(array.type):
                break
            nested, lengths = True, pc.min_max(pc.list_value_length(array)).as_py()
            if lengths["min"] != lengths["max"]:
                raise self._folder.error(
                    f"{where} has {lengths['min']} numbers in one row, {lengths['max']} in another"
                )
            array = array.flatten()
        if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
            raise self._folder.error(f"{where} holds {array.type}", expected="numbers")
        width = self._columns.get(name, 1)
        if len(array) != rows * width:
            raise self._folder.error(
                f"{where} has {len(array) // max(rows, 1)} numbers in a row", expected=f"{width}, as {INFO} says"
            )
        numbers = array.to_numpy(zero_copy_only=False)
        return numbers.reshape(rows, width) if nested else numbers


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
