"""The best rows so far for each query, and how a chunk of rows is compared with them.

Let u = 2**-24 and d the dim. A float32 product x . q, summed in any order, is off by less than
(d + 2) * u * |x| * |q| (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1);
rounding of norms, queries and scores adds a few u. The bound used here is (d + 32) * 2u.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.store.norms import NORM_MAX, NORM_MIN, is_far
from gatherd.store.query import Metric


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Queries of one search, flat: `exact` are (n, dim) float64, `norms` their lengths, (n,).

    `factors`, float32, is what chunks are multiplied with: for L2 twice the queries, else queries
    of length 1. `own` is the row that isn't to be a neighbor of each, None if all may be.
    """

    exact: NDArray[np.float64]
    norms: NDArray[np.float64]
    factors: NDArray[np.float32]
    metric: Metric
    own: NDArray[np.int64] | None

    @classmethod
    def of(
        cls, vectors: NDArray[np.float32], metric: Metric, own: NDArray[np.int64] | None
    ) -> "Queries":
        """Those of finite `vectors`, (n, dim)."""
        exact = vectors.astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
        if metric is Metric.L2:
            factors = 2 * exact
        else:
            factors = exact / np.where(norms > 0, norms, 1)[:, None]
        with np.errstate(over="ignore"):
            return cls(exact, norms, factors.astype(np.float32), metric, own)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.exact)

    @property
    def excludes(self) -> int:
        """How many rows can't be neighbors of a query: 0 or 1."""
        return int(self.own is not None)


# A little less than float32's largest number.
_SCORE_MAX: Final = 3.4e38


class Best:
    """The best rows of those compared so far; rows have to come in ascending order."""

    def __init__(self, queries: Queries, neighbor_count: int) -> None:
        self._queries = queries
        self._neighbor_count = neighbor_count
        self.ids = [np.empty(0, np.int64) for _ in range(queries.count)]
        # Scores, negated for L2: the higher the nearer.
        self.ranks = [np.empty(0, np.float32) for _ in range(queries.count)]
        # What a product, as `_products` gives it, has to exceed; −inf until there are enough rows.
        self._bars = np.full(queries.count, -np.inf)
        self._relative_error = (queries.exact.shape[1] + 32) * 2.0**-23

    def compare(self, start: int, rows: NDArray[np.float32], norms: NDArray[np.float32]) -> None:
        """Take the rows from id `start` on, with their norms."""
        queries = self._queries
        with np.errstate(all="ignore"):
            least, most = float(norms.min()), float(norms.max())
            products = self._products(rows, norms, least, most)
            if queries.own is not None:
                here = np.flatnonzero((queries.own >= start) & (queries.own < start + len(rows)))
                products[here, queries.own[here] - start] = -np.inf
            highest = products.max(axis=1).astype(np.float64)
            errors = self._errors(most, queries.norms)
            for i in np.flatnonzero(~(highest + errors <= self._bars)):
                self._improve(int(i), start, rows, norms, products[i])

    def take(self, other: "Best") -> None:
        """Take the best of another part of the rows."""
        for i, (ids, ranks) in enumerate(zip(other.ids, other.ranks, strict=True)):
            self._merge(i, ids, ranks)

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and scores, (queries, neighbors)."""
        scores = np.stack(self.ranks)
        if self._queries.metric is Metric.L2:
            scores = -scores
        return np.stack(self.ids), scores

    def _products(
        self, rows: NDArray[np.float32], norms: NDArray[np.float32], least: float, most: float
    ) -> NDArray[np.float32]:
        """(queries, rows): the higher the nearer; NaN for a row that needs to be scored exactly."""
        queries = self._queries
        products: NDArray[np.float32]
        if queries.count == 1:
            products = (rows @ queries.factors[0])[None]
        else:
            products = queries.factors @ rows.T
        if queries.metric is Metric.COSINE:
            products /= norms if least > 0 else np.where(norms > 0, norms, 1)
        elif queries.metric is Metric.L2:
            products -= norms * norms
        if not (least >= NORM_MIN and most <= NORM_MAX):
            products[:, (norms != 0) & is_far(norms)] = np.nan
        return products

    def _errors(self, norms: Any, query_norms: Any) -> Any:
        """How far a product of rows and queries with these norms may be off."""
        if self._queries.metric is Metric.COSINE:
            return self._relative_error
        if self._queries.metric is Metric.DOT:
            return self._relative_error * norms
        return self._relative_error * (norms + query_norms) ** 2

    def _improve(
        self,
        i: int,
        start: int,
        rows: NDArray[np.float32],
        norms: NDArray[np.float32],
        products: NDArray[np.float32],
    ) -> None:
        """Score the rows that may be among the best of query `i`."""
        errors = self._errors(norms.astype(np.float64), float(self._queries.norms[i]))
        above, below = products + errors, products - errors
        places = np.flatnonzero(~(above <= self._bars[i]))
        surplus = places.size - self._neighbor_count
        if surplus > 0:
            sure = np.nan_to_num(below[places], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
            bar = self._within_float32(i, float(np.partition(sure, surplus)[surplus]))
            places = places[~(above[places] < bar)]
        self._merge(i, places + start, self._ranks_of(i, rows[places].astype(np.float64)))

    def _within_float32(self, i: int, bar: float) -> float:
        """`bar`, lowered if all scores from it on, up or down, are infinity in float32: equal."""
        norm = float(self._queries.norms[i])
        if self._queries.metric is Metric.DOT and norm:
            most = _SCORE_MAX / norm
            return min(bar, most) if bar > -most else -np.inf
        if self._queries.metric is Metric.L2 and bar <= norm * norm - _SCORE_MAX**2:
            return -np.inf
        return bar

    def _ranks_of(self, i: int, rows: NDArray[np.float64]) -> NDArray[np.float32]:
        query = self._queries.exact[i]
        ranks: NDArray[np.float64]
        if self._queries.metric is Metric.L2:
            apart = rows - query
            ranks = -np.sqrt(np.einsum("ij,ij->i", apart, apart))
            return ranks.astype(np.float32)
        ranks = np.einsum("ij,j->i", rows, query)
        if self._queries.metric is Metric.COSINE:
            lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows)) * self._queries.norms[i]
            ranks = np.where(lengths == 0, 0, ranks / lengths)
        return ranks.astype(np.float32)

    def _merge(self, i: int, ids: NDArray[np.int64], ranks: NDArray[np.float32]) -> None:
        if not ids.size:
            return
        ids = np.concatenate((self.ids[i], ids))
        ranks = np.concatenate((self.ranks[i], ranks))
        order = np.lexsort((ids, -ranks))[: self._neighbor_count]  # it has NaN last
        self.ids[i], self.ranks[i] = ids[order], ranks[order]
        if order.size == self._neighbor_count:
            self._bars[i] = self._bar(i, float(self.ranks[i][-1]))

    def _bar(self, i: int, rank: float) -> float:
        """The product of a row of the rank `rank`, which is the lowest of the best."""
        if np.isnan(rank):
            return -np.inf
        norm = float(self._queries.norms[i])
        if self._queries.metric is Metric.COSINE:
            return rank
        if self._queries.metric is Metric.DOT:
            return rank / norm if norm else 0.0
        return norm * norm - rank * rank
