"""Latent Dirichlet allocation beside scikit-learn's, on sparse counts the size of 20 newsgroups.

The corpus is drawn from the model. Topics of both are scored alike: the topics of a held-out document
are inferred from half of its words, and the perplexity is that of the other half.

Both start at random, and starts differ more than the two programs do: compare the means over seeds.

Usage: python benchmarks/ascent_topics.py [--documents D] [--words V] [--topics K] [--passes P ...]
    [--their-passes P ...] [--seeds SEED ...]
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from scipy.special import digamma
from sklearn.decomposition import LatentDirichletAllocation as TheirAllocation

from ppl_vi import fit
from ppl_vi.models import LatentDirichletAllocation, word_pairs

_LENGTH = 150
"""Words in a document, in the mean."""
_HELD_OUT = 500

Fitted = tuple[Any, float, float]
"""Topics ``[K, V]``, the seconds of the fit, and those of a pass."""


def main() -> None:
    """Fit both for the same number of passes, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=11_314)
    parser.add_argument("--words", type=int, default=20_000)
    parser.add_argument("--topics", type=int, default=20)
    parser.add_argument("--passes", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--their-passes", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    every = corpus(options.documents + _HELD_OUT, options.words, options.topics)
    train, held_out = every[: options.documents], every[options.documents :]
    print(f"{train.shape[0]} documents, {train.shape[1]} words, {train.nnz} counts that are not 0")
    rows = []
    ways = [("ppl-vi", _own, n) for n in options.passes]
    ways += [("scikit-learn", _their, n) for n in options.their_passes]
    for seed, (name, way, passes) in product(options.seeds, ways):
        topics, seconds, each = way(train, options.topics, passes, seed)
        rows.append(
            {
                "by": name,
                "passes": passes,
                "seed": seed,
                "seconds, start included": round(seconds, 1),
                "seconds a pass": round(each, 2),
                "held-out perplexity": round(perplexity(topics, held_out, 1 / options.topics), 1),
            }
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if len(options.seeds) > 1:
        print(table.groupby(["by", "passes"]).mean().drop(columns="seed").round(2).to_string())


def corpus(documents: int, words: int, topics: int) -> csr_matrix:
    """Counts ``[documents, words]`` drawn from the model, words of a topic by a power law."""
    rng = np.random.default_rng(0)
    popularity = 1.0 / (1 + np.arange(words))
    phi = np.stack([rng.permutation(popularity) for _ in range(topics)])
    phi = 0.5 * phi / phi.sum(1, keepdims=True) + 0.5 * popularity / popularity.sum()
    places, rows = [], []
    for document in range(documents):
        share = rng.dirichlet(np.full(topics, 0.2)) @ phi
        drawn = rng.choice(words, rng.poisson(_LENGTH) + 2, p=share / share.sum())
        places.append(drawn)
        rows.append(np.full(len(drawn), document))
    index = np.concatenate(rows), np.concatenate(places)
    counts = csr_matrix((np.ones(len(index[0])), index), shape=(documents, words))
    counts.sum_duplicates()
    return counts


def _own(train: csr_matrix, topics: int, passes: int, seed: int) -> Fitted:
    started = time.perf_counter()
    model = LatentDirichletAllocation(topics, *train.shape)
    times: list[float] = []
    result = fit(
        model,
        "cavi",
        word_pairs(train),
        steps=passes,
        seed=seed,
        progress=False,
        callbacks=[lambda _: times.append(time.perf_counter())],
    )
    each = float(np.median(np.diff(times)))
    return result.guide.factors()["phi"].mean.numpy(), times[-1] - started, each


def _their(train: csr_matrix, topics: int, passes: int, seed: int) -> Fitted:
    theirs = TheirAllocation(
        topics,
        max_iter=passes,
        learning_method="batch",
        random_state=seed,
        n_jobs=torch.get_num_threads(),
    )
    started = time.perf_counter()
    theirs.fit(train)
    seconds = time.perf_counter() - started
    return theirs.components_ / theirs.components_.sum(1, keepdims=True), seconds, seconds / passes


def perplexity(topics: Any, documents: csr_matrix, concentration: float) -> float:
    """Of the second half of each document's words, given the first half."""
    rng = np.random.default_rng(1)
    log_likelihood, tokens = 0.0, 0
    for document in documents:
        words = rng.permutation(np.repeat(document.indices, document.data.astype(int)))
        seen, hidden = np.array_split(words, 2)
        weight = _theta(topics[:, seen], concentration)
        log_likelihood += np.log(weight @ topics[:, hidden]).sum()
        tokens += len(hidden)
    return float(np.exp(-log_likelihood / tokens))


def _theta(likelihood: Any, concentration: float) -> Any:
    """The mean of q(θ) of a document, by coordinate ascent with fixed topics."""
    gamma = np.full(len(likelihood), concentration + likelihood.shape[1] / len(likelihood))
    for _ in range(100):
        r = np.exp(digamma(gamma))[:, None] * likelihood
        gamma = concentration + (r / r.sum(0)).sum(1)
    return gamma / gamma.sum()


if __name__ == "__main__":
    main()
