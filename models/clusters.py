"""Where mixtures start: clusters found by k-means++, and their moments."""

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
    rows = rows.detach()
    if len(rows) > _MOST_ROWS:
        rows = rows[torch.randperm(len(rows))[:_MOST_ROWS].to(rows.device)]
    distinct = len(torch.unique(rows, dim=0))
    if distinct < num_clusters:
        raise DataError(
            f"the data have {distinct} distinct rows, fewer than the {num_clusters} components. Use "
            f"fewer components."
        )
    overall = rows.std(0, correction=0)
    scale = torch.where(overall > 0, overall, torch.ones_like(overall))
    seed = int(torch.randint(2**31 - 1, ()))
    from sklearn.cluster import KMeans  # heavy, and not every model needs it

    means = KMeans(num_clusters, n_init=_STARTS, random_state=seed)
    labels = torch.as_tensor(means.fit_predict((rows / scale).cpu().numpy())).long()
    centers = torch.stack([rows[labels == k].mean(0) for k in range(num_clusters)])
    labels = centers[:, 0].argsort().argsort()[labels.to(rows.device)]
    return _moments(rows, labels, num_clusters, scale)


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
