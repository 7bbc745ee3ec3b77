"""Clusters by k-means++: every row has one, each call starts elsewhere, scales do not matter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_vi.clusters import cluster_labels, find_clusters
from ppl_vi.errors import DataError


def groups(rows_each: int, *centers: list[float]) -> Tensor:
    torch.manual_seed(0)
    return torch.cat([torch.randn(rows_each, len(c)) * 0.1 + torch.tensor(c) for c in centers])


def test_labels_are_those_of_the_groups() -> None:
    labels = cluster_labels(groups(30, [0.0, 0.0], [5.0, 0.0], [0.0, 5.0]), 3)
    assert labels is not None
    assert sorted(labels[[0, 30, 60]].tolist()) == [0, 1, 2]
    assert (labels.reshape(3, 30) == labels[[0, 30, 60], None]).all()


def test_the_unit_of_a_dimension_and_its_origin_do_not_matter() -> None:
    rows = groups(30, [0.0, 0.0], [0.0, 5.0])
    moved = rows * torch.tensor([1e4, 1.0]) + 100.0
    labels = cluster_labels(moved, 2)
    assert labels is not None
    assert (labels[:30] == labels[0]).all() and (labels[30:] != labels[0]).all()


def test_of_many_rows_all_have_a_label() -> None:
    labels = cluster_labels(groups(15_000, [0.0], [5.0]), 2)
    assert labels is not None
    assert (labels[:15_000] == labels[0]).all() and (labels[15_000:] == 1 - labels[0]).all()


def test_calls_differ_and_repeat_by_the_random_state() -> None:
    rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))

    def called(seed: int) -> Tensor:
        torch.manual_seed(seed)
        labels = cluster_labels(rows, 8)
        assert labels is not None
        return labels

    assert torch.equal(called(0), called(0))
    pairs = [called(seed)[:, None] == called(seed)[None, :] for seed in range(4)]
    assert not all(torch.equal(pairs[0], other) for other in pairs)


def test_fewer_distinct_rows_than_clusters() -> None:
    rows = torch.tensor([[0.0], [1.0]]).repeat(10, 1)
    assert cluster_labels(rows, 3) is None
    with pytest.raises(DataError, match="2 distinct rows"):
        find_clusters(rows, 3)
