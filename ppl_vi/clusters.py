"""Where mixtures start: clusters of rows, found by k-means from k-means++ seeds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.errors import DataError

_MOST_ROWS = 20_000
_STARTS = 10
_SHRINKAGE = 0.1


class Clusters(NamedTuple):
    """K clusters, in ascending order of their first coordinate.

    Attributes:
        means: ``[K, D]``.
        deviations: ``[K, D]``, standard deviations within, never 0.
        correlations: ``[K, D, D]`` within, shrunk towards independence.
        shares: ``[K]`` of the rows, smoothed by one row each.
    """

    means: Tensor
    deviations: Tensor
    correlations: Tensor
    shares: Tensor


def find_clusters(rows: Tensor, num_clusters: int) -> Clusters:
    """The best of several k-means runs, each from k-means++ seeds drawn by torch's random state.

    Dimensions are brought to one scale first. Of more than 20,000 rows a random part is used.

    Args:
        rows: ``[N, D]``.
        num_clusters: K.

    Raises:
        DataError: there are fewer distinct rows than clusters.

    Source: Arthur and Vassilvitskii (2007).
    """
    found = _partition(rows, num_clusters, _STARTS)
    if found is None:
        distinct = len(torch.unique(_sample(rows), dim=0))
        raise DataError(
            f"the data have {distinct} distinct rows, fewer than the {num_clusters} components. Use "
            f"fewer components."
        )
    rows, labels, scale = found
    centers = _centers(rows, labels, num_clusters)
    labels = centers[:, 0].argsort().argsort()[labels]
    return _moments(rows, labels, num_clusters, scale)


def cluster_labels(rows: Tensor, num_clusters: int) -> Tensor | None:
    """``[N]``: the cluster of each row, by a single k-means run from k-means++ seeds.

    The seeds come from torch's random state, so that every call starts elsewhere. Dimensions are
    brought to one scale first. Of more than 20,000 rows a random part is clustered, and every other
    row joins the centre nearest to it.

    Args:
        rows: ``[N, D]``.
        num_clusters: K.

    Returns:
        Numbers from 0 to K - 1 in no order, or None where there are fewer distinct rows than clusters.

    Example:
        >>> import torch
        >>> labels = cluster_labels(torch.tensor([[0.0], [0.1], [9.0], [9.1]]), 2)
        >>> bool(labels[0] == labels[1] and labels[2] == labels[3] and labels[0] != labels[2])
        True

    Source: Arthur and Vassilvitskii (2007).
    """
    found = _partition(rows, num_clusters, 1)
    if found is None:
        return None
    sample, labels, scale = found
    middle = sample.mean(0)
    centers = _centers((sample - middle) / scale, labels, num_clusters)
    half = centers.square().sum(-1) / 2
    parts = rows.detach().split(_MOST_ROWS)
    nearest = [((part - middle) / scale @ centers.mT - half).argmax(-1) for part in parts]
    return torch.cat(nearest)


def _sample(rows: Tensor) -> Tensor:
    """All rows, or a random part of many."""
    rows = rows.detach()
    if len(rows) <= _MOST_ROWS:
        return rows
    return rows[torch.randperm(len(rows))[:_MOST_ROWS].to(rows.device)]


def _partition(
    rows: Tensor, num_clusters: int, starts: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows, their clusters by the best of several runs, and the scale of each dimension.

    None where there are fewer distinct rows than clusters.
    """
    rows = _sample(rows)
    if len(torch.unique(rows, dim=0)) < num_clusters:
        return None
    overall = rows.std(0, correction=0)
    scale = torch.where(overall > 0, overall, torch.ones_like(overall))
    seed = int(torch.randint(2**31 - 1, ()))
    from sklearn.cluster import KMeans  # heavy, and not every fit needs it

    runs = KMeans(num_clusters, n_init=starts, random_state=seed)
    labels = torch.as_tensor(runs.fit_predict((rows / scale).cpu().numpy())).long()
    return rows, labels.to(rows.device), scale


def _centers(rows: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    return torch.stack([rows[labels == k].mean(0) for k in range(num_clusters)])


def _moments(rows: Tensor, labels: Tensor, num_clusters: int, scale: Tensor) -> Clusters:
    means, deviations, correlations, sizes = [], [], [], []
    for k in range(num_clusters):
        members = rows[labels == k]
        centered = members - members.mean(0)
        # A cluster of one row, or of equal ones, has no spread of its own.
        deviation = centered.square().mean(0).sqrt().clamp(min=scale * 1e-2)
        standard = centered / deviation
        correlation = standard.mT @ standard / len(members)
        identity = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        off_diagonal = (1 - _SHRINKAGE) * correlation * (1 - identity)
        means.append(members.mean(0))
        deviations.append(deviation)
        correlations.append(off_diagonal + identity)
        sizes.append(len(members) + 1.0)
    shares = rows.new_tensor(sizes)
    return Clusters(
        torch.stack(means),
        torch.stack(deviations),
        torch.stack(correlations),
        shares / shares.sum(),
    )
