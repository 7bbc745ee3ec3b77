from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset

from ppl_vi.data.sources import DEFAULT_BATCH_SIZE, data_source
from ppl_vi.errors import DataError

NUM_ROWS = 10


class Items(Dataset):
    """A map-style data set of the given items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(2)])


class Unsized(Dataset):
    def __getitem__(self, row):
        return torch.zeros(2)


def numbered(num_rows=NUM_ROWS):
    """Rows that carry their own number."""
    return torch.arange(num_rows, dtype=torch.float32)


def row_numbers(batches):
    return torch.cat([batch.args[0] for batch in batches]).long()


KINDS = {
    "tensor": lambda x: x,
    "array": lambda x: x.numpy(),
    "series": lambda x: pd.Series(x.numpy()),
    "list": lambda x: x.tolist(),
    "tuple": lambda x: (x, torch.ones(len(x), 2), 3),
    "tensor_dataset": lambda x: TensorDataset(x, torch.ones(len(x), 2)),
    "dataset": lambda x: Items([(v, {"nested": 1}) for v in x]),
}
each_kind = pytest.mark.parametrize("wrap", KINDS.values(), ids=KINDS.keys())


# --- batches -------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("batch_size", [1, 3, 5, 9])
def test_epoch_visits_every_row_once(wrap, batch_size):
    source = data_source(wrap(numbered()), batch_size)
    assert source.num_rows == NUM_ROWS and source.batched
    generator = torch.Generator().manual_seed(0)
    batches = list(source.epoch(generator))
    full, ragged = divmod(NUM_ROWS, batch_size)
    assert [batch.size for batch in batches] == [batch_size] * full + [ragged] * (ragged > 0)
    assert sorted(row_numbers(batches).tolist()) == list(range(NUM_ROWS))
    for batch in batches:
        assert batch.rows.tolist() == batch.args[0].tolist()
    again = row_numbers(source.epoch(generator))
    assert not torch.equal(again, row_numbers(batches))  # each epoch has its own order


@each_kind
@pytest.mark.parametrize("batch_size", [3, 10, 11])
def test_sequence_head_and_whole_keep_data_order(wrap, batch_size):
    source = data_source(wrap(numbered()), batch_size)
    sizes = [batch.size for batch in source.sequence()]
    assert sizes == ([3, 3, 3, 1] if batch_size == 3 else [NUM_ROWS])
    assert row_numbers(source.sequence()).tolist() == list(range(NUM_ROWS))
    for size in (1, 4, NUM_ROWS, NUM_ROWS + 5):
        head = source.head(size)
        assert head.size == min(size, NUM_ROWS)
        assert head.rows.tolist() == head.args[0].tolist() == list(range(head.size))
    assert source.whole().rows.tolist() == list(range(NUM_ROWS)) == source.whole().args[0].tolist()


@each_kind
@pytest.mark.parametrize("batch_size", [None, NUM_ROWS, NUM_ROWS + 1])
def test_one_whole_batch_is_not_shuffled(wrap, batch_size):
    source = data_source(wrap(numbered()), batch_size)
    assert not source.batched
    state = torch.get_rng_state()
    (batch,) = source.epoch(None)
    assert batch.size == NUM_ROWS
    assert batch.rows.tolist() == batch.args[0].tolist() == list(range(NUM_ROWS))
    assert torch.equal(state, torch.get_rng_state())


@each_kind
def test_order_follows_the_generator_or_the_global_seed(wrap):
    source = data_source(wrap(numbered()), batch_size=4)

    def order(seed):
        return row_numbers(source.epoch(torch.Generator().manual_seed(seed))).tolist()

    assert order(1) == order(1) != order(2)
    torch.manual_seed(1)
    assert row_numbers(source.epoch()).tolist() == order(1)


@each_kind
def test_only_an_epoch_without_generator_draws_from_the_global_state(wrap):
    source = data_source(wrap(numbered()), batch_size=4)
    state = torch.get_rng_state()
    source.whole(), source.head(2), list(source.sequence())
    list(source.epoch(torch.Generator()))
    assert torch.equal(state, torch.get_rng_state())


def test_the_order_is_drawn_when_epoch_is_called():
    source = data_source(numbered(), batch_size=4)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    source.epoch(generator)
    assert not torch.equal(state, generator.get_state())


def test_whole_tensors_are_passed_without_a_copy():
    x = numbered()
    source = data_source(x)
    assert next(source.epoch()).args[0] is x and source.whole().args[0] is x


# --- arguments -----------------------------------------------------------------------------------


def test_none_is_no_argument():
    source = data_source(None)
    assert source.num_rows is None and not source.batched
    for batch in (source.whole(), source.head(3), *source.epoch(), *source.sequence()):
        assert (batch.args, batch.kwargs, batch.rows, batch.size) == ((), {}, None, None)


@pytest.mark.parametrize("value", [3, 2.5, "text", len, torch.tensor(2.0), np.array(1)])
def test_a_value_without_rows_passes_whole(value):
    source = data_source(value)
    batch = source.whole()
    assert source.num_rows is None and batch.size is None and batch.rows is None
    assert batch.args == (value,)


def test_tuples_are_positional_and_dicts_are_keywords():
    x, y = numbered(), torch.ones(NUM_ROWS, 2)
    assert [a is b for a, b in zip(data_source((x, y)).whole().args, (x, y), strict=True)] == [1, 1]
    batch = data_source({"y": y, "x": x, "k": 4}, batch_size=3).head(3)
    assert batch.args == () and list(batch.kwargs) == ["y", "x", "k"]
    assert batch.kwargs["y"].shape == (3, 2) and batch.kwargs["x"].shape == (3,)


def test_only_leaves_as_long_as_the_first_tensor_are_rows():
    other = [[1], {"a": torch.ones(NUM_ROWS)}, None]
    leaves = (2, torch.tensor(5.0), numbered(), torch.ones(7), torch.eye(NUM_ROWS), *other)
    batch = data_source(leaves, batch_size=4).head(4)
    shapes = [tuple(leaf.shape) for leaf in batch.args[1:5]]
    assert shapes == [(), (4,), (7,), (4, NUM_ROWS)]
    assert batch.args[0] == 2 and all(a is b for a, b in zip(batch.args[5:], other, strict=True))


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f8"])
def test_floating_arrays_take_the_default_dtype(dtype, default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        (x,) = data_source(np.array([0.5, np.inf], dtype)).whole().args
    finally:
        torch.set_default_dtype(before)
    assert x.dtype == default and x.tolist() == [0.5, np.inf]


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.array([0, 1]), torch.int64),
        (np.array([0, 1], np.int32), torch.int32),
        (np.array([0, 1], np.uint8), torch.uint8),
        (np.array([0, 1], np.uint16), torch.int64),
        (np.array([0, 1], ">i8"), torch.int64),
        (np.array([False, True]), torch.bool),
        (pd.Series([0, 1]), torch.int64),
        (pd.Series([0, 1], dtype="Int64"), torch.int64),
        (pd.Series([0.0, 1.0]), torch.float32),
        ([0, 1], torch.int64),
        ([False, True], torch.bool),
        ([0.0, np.float32(1)], torch.float32),
        (torch.tensor([0, 1], dtype=torch.float64), torch.float64),
        (torch.tensor([0, 1], dtype=torch.int16), torch.int16),
    ],
)
def test_dtypes(given, dtype):
    (x,) = data_source(given, batch_size=1).whole().args
    assert x.dtype == dtype and x.tolist() == [0, 1]


def test_frames_and_unusual_memory_layouts():
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5]})
    (x,) = data_source(frame).whole().args
    assert x.dtype == torch.float32 and x.tolist() == frame.to_numpy().tolist()
    assert x.is_contiguous()
    array = np.arange(6.0).reshape(3, 2)
    assert data_source(array[::-1]).whole().args[0].tolist() == array[::-1].tolist()
    (x,) = data_source(array).whole().args
    array[:] = -1  # the tensor is a copy
    assert x.min() == 0
    assert data_source([[1, 2], [3, 4], [5, 6]]).whole().args[0].shape == (3, 2)


@pytest.mark.parametrize("wrap", [KINDS["array"], KINDS["tuple"], KINDS["dataset"]])
def test_device_moves_tensors_and_row_numbers(wrap):
    source = data_source(wrap(numbered()), batch_size=4, device="meta")
    for batch in (source.whole(), source.head(2), *source.epoch(), *source.sequence()):
        assert batch.args[0].device.type == batch.rows.device.type == "meta"


# --- data sets and loaders -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [TensorDataset, Items])
def test_a_dataset_has_a_default_batch_size(make):
    source = data_source(make(numbered(DEFAULT_BATCH_SIZE + 1)))
    assert source.batched
    assert [batch.size for batch in source.epoch()] == [DEFAULT_BATCH_SIZE, 1]


def test_tensor_dataset_equals_the_same_items_in_a_dataset():
    tensors = numbered(), torch.randn(NUM_ROWS, 2)
    pairs = [
        data_source(data, 4).epoch(torch.Generator().manual_seed(3))
        for data in (TensorDataset(*tensors), Items(list(zip(*tensors, strict=True))))
    ]
    for fast, slow in zip(*pairs, strict=True):
        assert torch.equal(fast.rows, slow.rows) and len(fast.args) == len(slow.args) == 2
        assert all(torch.equal(a, b) for a, b in zip(fast.args, slow.args, strict=True))


@pytest.mark.parametrize("make", [lambda d: data_source(d, 4), lambda d: data_source(loader(d, 4))])
@pytest.mark.parametrize(
    ("item", "names"),
    [
        (lambda v: v, [0]),
        (lambda v: float(v), [0]),
        (lambda v: (v, v[None]), [0, 1]),
        (lambda v: [v, 1], [0, 1]),
        (lambda v: {"x": v, "y": v}, ["x", "y"]),
    ],
)
def test_items_become_arguments(make, item, names):
    source = make(Items([item(v) for v in numbered()]))
    for batch in (source.whole(), source.head(4), *source.epoch(), *source.sequence()):
        given = dict(enumerate(batch.args)) | batch.kwargs
        assert list(given) == names
        assert all(len(value) == batch.size for value in given.values())


def loader(dataset, batch_size, **options):
    return DataLoader(dataset, batch_size=batch_size, **options)


@pytest.mark.parametrize(
    ("options", "sizes", "sequence_sizes"),
    [
        ({"batch_size": 4, "shuffle": True}, [4, 4, 2], [4, 4, 2]),
        ({"batch_size": 4, "drop_last": True}, [4, 4], [4, 4, 2]),
        ({"batch_size": 10}, [10], [10]),
        ({"batch_size": 3, "sampler": [9, 9, 9, 9, 9]}, [3, 2], [3, 3, 3, 1]),
        ({"batch_sampler": BatchSampler(range(NUM_ROWS), 6, False)}, [6, 4], [6, 4]),
        ({"batch_sampler": [[0, 1, 2], [3]]}, [3, 1], [10]),
    ],
)
def test_a_loader_keeps_its_batches(options, sizes, sequence_sizes):
    source = data_source(DataLoader(TensorDataset(numbered()), **options))
    assert source.num_rows == NUM_ROWS and source.batched
    assert [batch.size for batch in source.epoch()] == sizes
    assert [batch.size for batch in source.sequence()] == sequence_sizes
    assert row_numbers(source.sequence()).tolist() == list(range(NUM_ROWS))
    assert source.head(2).args[0].tolist() == [0, 1] and source.whole().size == NUM_ROWS
    every = (source.whole(), source.head(2), *source.epoch(), *source.sequence())
    assert all(batch.rows is None for batch in every)


def test_a_loader_shuffles_by_its_own_generator_and_collates_by_its_own_function():
    def collate(items):
        return {"x": torch.stack([x for (x,) in items])}

    def order():
        own = torch.Generator().manual_seed(0)
        data = loader(TensorDataset(numbered()), 4, shuffle=True, generator=own, collate_fn=collate)
        return torch.cat([batch.kwargs["x"] for batch in data_source(data).epoch()]).tolist()

    assert order() == order() != list(range(NUM_ROWS))


def test_reading_a_loader_in_order_leaves_the_global_state():
    source = data_source(loader(TensorDataset(numbered()), 4, shuffle=True))
    state = torch.get_rng_state()
    source.whole(), source.head(3), list(source.sequence())
    assert torch.equal(state, torch.get_rng_state())


def test_a_loader_with_workers():
    source = data_source(loader(Items(list(range(6))), 4, num_workers=1))
    assert row_numbers(source.epoch()).tolist() == row_numbers(source.sequence()).tolist()
    assert source.head(2).args[0].tolist() == [0, 1]


# --- errors --------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.tensor([0.0, NAN, NAN]), r"`data` has 2 NaN, the first at index \[1\].*impute"),
        (np.array([[0.0, 1], [2, NAN]]), r"`data` has 1 NaN, the first at index \[1, 1\]"),
        (pd.Series([0, None], dtype="Int64"), r"`data` has 1 NaN, the first at index \[1\]"),
        ([NAN], r"`data` has 1 NaN"),
        ((1, numbered(), np.array(NAN)), r"`data\[2\]` has 1 NaN, the first at index \[\]"),
        ({"x": numbered(), "y": pd.Series([NAN])}, r"`data\['y'\]` has 1 NaN"),
        (TensorDataset(torch.tensor([NAN])), r"`data\[0\]` has 1 NaN"),
        (np.array(["a"]), r"`data` must be plain real numbers, but it has dtype <U1.*encode"),
        ((1, np.array([None])), r"`data\[1\]` must be plain real numbers, but it has dtype object"),
        ({"y": np.array([1j])}, r"`data\['y'\]` must be .* dtype complex128"),
        (np.array(["2020-01-01"], "M8[D]"), r"dtype datetime64\[D\]"),
        (np.array(["NaT"], "m8[s]"), r"dtype timedelta64\[s\]"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), r"`data` .* has a mask.*fill masked"),
        (
            pd.DataFrame({"a": [1], "b": ["c"]}),
            r"`data` .* dtype object. Select the numeric columns",
        ),
        ([1, "a"], "A list given as `data` must be numbers.*Pass a tuple"),
        ([[1], [2, 3]], "A list given as `data` must be numbers, or equally long"),
        ([numbered(), numbered()], "A list given as `data` must be numbers"),
        (torch.zeros(0, 3), "no rows: the first dimension is 0"),
        ([], "no rows"),
        (Items([]), "no rows"),
        (Stream(), "Stream has no known number of rows.*__len__ and __getitem__"),
        (Unsized(), "Unsized has no known number of rows"),
        (DataLoader(Stream()), "Stream has no known number of rows"),
        (DataLoader(Stream(), batch_size=None), "Stream has no known number of rows"),
        (DataLoader(Items([1]), batch_size=None), "batch_size=None.*Give it a batch_size"),
    ],
)
def test_unusable_data(data, message):
    with pytest.raises(DataError, match=message):
        data_source(data)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "3", np.int64(0)])
def test_batch_size_must_be_a_positive_integer(batch_size):
    with pytest.raises(DataError, match="`batch_size` must be a positive integer or None, but"):
        data_source(numbered(), batch_size)


def test_numpy_integers_are_batch_sizes():
    assert [batch.size for batch in data_source(numbered(), np.int64(6)).epoch()] == [6, 4]


@pytest.mark.parametrize("data", [None, 3, ("a", torch.tensor(1.0)), {"x": [1, 2]}])
def test_batches_need_rows(data):
    with pytest.raises(DataError, match=r"batch_size=2 needs rows.*leave `batch_size` out"):
        data_source(data, batch_size=2)


def test_a_loader_refuses_a_batch_size():
    with pytest.raises(DataError, match=r"together with a DataLoader.*pass the Dataset itself"):
        data_source(loader(TensorDataset(numbered()), 2), batch_size=2)


@pytest.mark.parametrize("make", [lambda d: data_source(d, 2), lambda d: data_source(loader(d, 2))])
def test_batches_are_checked_as_they_are_read(make):
    source = make(Items([{"x": 0.0}, {"x": 1.0}, {"x": 2.0}, {"x": NAN}]))
    source.head(2)
    for read in (source.whole, lambda: list(source.epoch()), lambda: list(source.sequence())):
        with pytest.raises(DataError, match=r"`batch\['x'\]` has 1 NaN"):
            read()


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda items: torch.stack(items)[None], r"shape \(1, 2\).*put rows in the first"),
        (lambda items: torch.stack(items)[:1], r"2 rows were collated .* shape \(1,\)"),
    ],
)
def test_collated_rows_come_first(collate, message):
    source = data_source(loader(Items(list(numbered())), 4, collate_fn=collate))
    with pytest.raises(DataError, match=message):
        source.head(2)


def test_a_loader_must_give_batches_with_rows():
    empty = data_source(loader(TensorDataset(numbered(3)), 4, drop_last=True))
    with pytest.raises(DataError, match=r"no batch from 3 rows. Use drop_last=False"):
        list(empty.epoch())
    strange = data_source(loader(Items(list(numbered())), 4, collate_fn=len))
    with pytest.raises(DataError, match="no tensor with a first dimension"):
        list(strange.epoch())


def test_rows_on_disk_are_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(12, dtype=np.float32).reshape(6, 2))
    mapped = np.load(path, mmap_mode="r")
    source = data_source(mapped, batch_size=2)
    whole = source.whole().args[0]
    assert whole.data_ptr() == mapped.ctypes.data
    assert next(batch.args[0].tolist() for batch in source.sequence()) == [[0.0, 1.0], [2.0, 3.0]]


# --- arrays on disk, and data sets of other libraries ------------------------------------------------


class Stored:
    """An array as Zarr has it, without a length: rows by slices and by sorted numbers, each once."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.most = array, array.shape, array.dtype, 0

    def __getitem__(self, rows):
        found = self.array[rows]
        if not isinstance(rows, slice):
            assert (np.diff(rows) > 0).all()
        self.most = max(self.most, len(found))
        return found.copy()


class Fetched:
    """A data set of another library, which gives several items at once."""

    def __init__(self, array):
        self.array, self.fetched = array, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, row):
        raise AssertionError("rows are asked for together")

    def __getitems__(self, rows):
        self.fetched.append(len(rows))
        return [{"x": self.array[row]} for row in rows]


class Counted(IterableDataset):
    def __init__(self, said=NUM_ROWS, given=NUM_ROWS):
        self.said, self.given = said, given

    def __len__(self):
        return self.said

    def __iter__(self):
        return iter(numbered(self.given))


def test_a_stored_array_is_read_rows_by_rows():
    array = Stored(np.arange(20.0).reshape(10, 2))
    source = data_source((array, numbered(), Stored(np.ones(3))), batch_size=4)
    assert source.num_rows == NUM_ROWS and source.batched and not source.by_rows
    first, *_, last = source.sequence()
    assert first.args[0].dtype == torch.float32 and last.args[0].tolist() == [[16, 17], [18, 19]]
    assert first.args[2].tolist() == [1, 1, 1]
    for batch in source.epoch(torch.Generator().manual_seed(0)):
        assert torch.equal(batch.args[0][:, 0] / 2, batch.args[1])
    assert array.most == 4
    assert data_source(array).whole().args[0].shape == (10, 2)


def test_a_memory_map_of_another_type_is_converted_rows_by_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(12.0).reshape(6, 2))
    source = data_source(np.load(path, mmap_mode="r"), batch_size=4)
    assert not source.by_rows
    dtypes = {batch.args[0].dtype for batch in source.sequence()}
    assert dtypes == {torch.float32}
    np.save(path, np.array([[0.0], [np.nan]]))
    source = data_source(np.load(path, mmap_mode="r"), batch_size=1)
    with pytest.raises(DataError, match=r"`data` has 1 NaN"):
        list(source.sequence())


def test_zarr_arrays(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    array = zarr.open(str(tmp_path / "x.zarr"), mode="w", shape=(10, 2), chunks=(3, 2), dtype="f4")
    array[:] = np.arange(20.0).reshape(10, 2)
    source = data_source(array, batch_size=4)
    rows = torch.cat([batch.args[0] for batch in source.epoch(torch.Generator())])
    assert sorted(rows[:, 0].tolist()) == [2.0 * number for number in range(10)]


def test_items_are_fetched_together():
    items = Fetched(numbered())
    source = data_source(items, batch_size=4)
    assert [batch.kwargs["x"].tolist() for batch in source.sequence()][2] == [8.0, 9.0]
    assert items.fetched == [4, 4, 2]


@pytest.mark.parametrize("wrap", [lambda d: (d, 4), lambda d: (loader(d, 4), None)])
def test_an_iterable_data_set_with_a_length(wrap):
    source = data_source(*wrap(Counted()))
    assert source.num_rows == NUM_ROWS and source.batched
    for read in (source.epoch, source.sequence):
        batches = list(read())
        assert row_numbers(batches).tolist() == list(range(NUM_ROWS))
        assert [batch.size for batch in batches] == [4, 4, 2]
        assert all(batch.rows is None for batch in batches)
    assert source.head(3).args[0].tolist() == [0, 1, 2] and source.whole().size == NUM_ROWS


def test_an_iterable_data_set_of_another_length_is_refused():
    with pytest.raises(DataError, match=r"Counted has a length of 12 rows but gave 10"):
        list(data_source(Counted(said=12), 4).sequence())


def test_many_rows_are_shuffled_in_sets(monkeypatch):
    from ppl_vi.data import orders

    monkeypatch.setattr(orders, "_MOST_AT_ONCE", 64)
    monkeypatch.setattr(orders, "_TOGETHER", 4)
    order = orders.shuffled_rows(1_003, 10, torch.Generator().manual_seed(0), torch.device("cpu"))
    batches = list(order)
    assert [len(rows) for rows in batches] == [10] * 100 + [3]
    rows = torch.cat(batches)
    assert sorted(rows.tolist()) == list(range(1_003))
    assert len({int(number) // 16 for number in rows[:64]}) == 4  # from four places, not one
    chosen = orders.some_rows(1_000, 30, torch.device("cpu"))
    assert len(set(chosen.tolist())) == len(chosen) > 20


def test_nan_are_found_in_any_piece(monkeypatch):
    from ppl_vi.data import arguments

    monkeypatch.setattr(arguments, "_PIECE", 6)
    table = torch.zeros(10, 3)
    table[7, 1] = table[9, 0] = NAN
    table[2, 2] = torch.inf
    with pytest.raises(DataError, match=r"`data` has 2 NaN, the first at index \[7, 1\]"):
        data_source(table)
