"""Latent Dirichlet allocation: topics of documents."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.distributions import IndexedCategorical
from ppl_vi.errors import DataError
from ppl_vi.models.checks import check_lengths, check_shape, count, positive
from ppl_vi.program import counted


class LatentDirichletAllocation:
    """Documents as mixtures of topics, a Pyro model ``model(documents, words, counts=None)``.

    phi_k ~ Dirichlet(topic_concentration),  theta_d ~ Dirichlet(document_concentration),
    z_n ~ Categorical(theta_{d_n}),  w_n ~ Categorical(phi_{z_n})

    Each row is a token, with the number of its document and of its word; or each is a pair of a
    document and a word that occurs in it, with the number of times that it does. Both give the same
    posterior and the same bound, since tokens of one pair have the same probabilities; pairs are fewer,
    and the cost is that of a sparse matrix. ``word_pairs`` makes them of one.

    Sites: ``phi`` [K, V], ``theta`` [D, K], ``z`` [N], ``w`` [N]. Leave ``z`` out of a guide, and it is
    summed out.

    Args:
        num_topics: K.
        num_documents: D.
        num_words: V, of the vocabulary.
        document_concentration: of the prior on the topics of a document; 1 / K by default.
        topic_concentration: of the prior on the words of a topic; 1 / K by default.

    Data are ``documents`` [N] and ``words`` [N], integers from 0, and ``counts`` [N] floating-point.

    Raises:
        ModelError: an argument is no number of its kind.
        DataError: the data have another shape.

    Example:
        >>> import torch
        >>> from ppl_vi import fit
        >>> from ppl_vi.models import LatentDirichletAllocation, word_pairs
        >>> counts = torch.tensor([[9, 8, 0, 0], [7, 9, 0, 0], [0, 0, 8, 9], [0, 1, 9, 9]])
        >>> lda = LatentDirichletAllocation(2, *counts.shape)
        >>> result = fit(lda, "cavi", word_pairs(counts), seed=0, restarts=4, progress=False)
        >>> topics = result.guide.factors()["phi"].mean
        >>> topics[topics[:, 0].argsort()].round(decimals=1)
        tensor([[0.0000, 0.0000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.0000, 0.0000]])

    Source: Blei, Ng and Jordan (2003), section 5.4, smoothed topics.
    """

    def __init__(
        self,
        num_topics: int,
        num_documents: int,
        num_words: int,
        *,
        document_concentration: float | None = None,
        topic_concentration: float | None = None,
    ) -> None:
        self.num_topics = count("num_topics", num_topics)
        self.num_documents = count("num_documents", num_documents)
        self.num_words = count("num_words", num_words)
        by_document, by_topic = (
            1 / num_topics if given is None else given
            for given in (document_concentration, topic_concentration)
        )
        self.document_concentration = positive("document_concentration", by_document)
        self.topic_concentration = positive("topic_concentration", by_topic)

    def __call__(self, documents: Tensor, words: Tensor, counts: Tensor | None = None) -> Tensor:
        """The joint density of the latents and the words; returns the words' site."""
        name = "LatentDirichletAllocation"
        check_shape(f"{name}: documents", documents, "[N]", integer=True)
        check_shape(f"{name}: words", words, "[N]", integer=True)
        check_lengths(name, documents=documents, words=words)
        if counts is not None:
            check_shape(f"{name}: counts", counts, "[N]")
            check_lengths(name, words=words, counts=counts)
        one = torch.ones((), device=words.device)
        with pyro.plate("topics", self.num_topics):
            prior = self.topic_concentration * one.expand(self.num_words)
            phi = pyro.sample("phi", dist.Dirichlet(prior))
        with pyro.plate("documents", self.num_documents):
            prior = self.document_concentration * one.expand(self.num_topics)
            theta = pyro.sample("theta", dist.Dirichlet(prior))
        with pyro.plate("tokens", len(words)), counted(1.0 if counts is None else counts):
            z = pyro.sample("z", dist.Categorical(theta[documents]))
            w: Tensor = pyro.sample("w", IndexedCategorical(phi, z), obs=words)
        return w


def word_pairs(counts: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The documents, words and counts, ``[N]`` each, of the entries of a matrix that are not 0.

    Args:
        counts: ``[D, V]``, how often each word occurs in each document: a tensor, an array, or a SciPy
            sparse matrix, which is never made dense.

    Raises:
        DataError: it is no matrix of numbers from 0 up.

    Example:
        >>> import torch
        >>> from ppl_vi.models import word_pairs
        >>> word_pairs(torch.tensor([[2, 0], [0, 3]]))
        (tensor([0, 1]), tensor([0, 1]), tensor([2., 3.]))
    """
    shape = tuple(getattr(counts, "shape", ()))
    if len(shape) != 2:
        given = list(shape) if shape else type(counts).__name__
        raise DataError(f"word_pairs: counts must be a matrix [documents, words], not {given}.")
    documents, words, times = _entries(counts)
    times = times.to(torch.get_default_dtype())
    if not bool((times.isfinite() & (times >= 0)).all()):
        raise DataError("word_pairs: counts must be 0 or more. Remove NaN and negative entries.")
    kept = times > 0
    return documents[kept].long(), words[kept].long(), times[kept]


def _entries(counts: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of a matrix, each place once."""
    if hasattr(counts, "tocoo"):
        sparse = counts.tocoo(copy=True)
        sparse.sum_duplicates()
        rows, columns, values = map(torch.as_tensor, (sparse.row, sparse.col, sparse.data))
        return rows, columns, values
    dense = torch.as_tensor(counts)
    rows, columns = dense.nonzero(as_tuple=True)
    return rows, columns, dense[rows, columns]
