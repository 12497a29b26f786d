"""A model that makes a vector of a text, or a score of a query and a document, in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.engine.evaluator import Tokens
from quantmill.engine.llama import native
from quantmill.engine.mainline import Evaluator
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError

Vector = NDArray[np.float32]

POOLINGS: Final = {"mean": 1, "cls": 2, "last": 3, "rank": 4}
"""How the vectors of a text's tokens become its embedding, by llama.cpp's numbers."""

_QUERY: Final = 0.25  # of a chunk, where its beginning is the query and the rest a document
_LEAST: Final = 4  # tokens of a query, and of a document


class Embedder(Evaluator):
    """A model that embeds texts of `context` tokens, or ranks pairs of that length, one at a time.

    A text is a chunk of a corpus in which the tokens that the vocabulary puts around a text take the place
    of the chunk's first and last. `rerank` is a reranker's own template, as its metadata have it.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int,
        pooling: str,
        rerank: str = "",
        writable: bool = False,
    ) -> None:
        with Vocabulary(path) as vocabulary:
            self._text = vocabulary.around()
            self._pair = vocabulary.around_pair(rerank)
        self.ranks = pooling == "rank"
        query, document = self._room(context)
        if min(query, document) < _LEAST:
            taken = sum(map(len, self._pair if self.ranks else self._text))
            what = f"{context} tokens hold no text beside the {taken} that the model wants around it"
            raise QuantmillError(what, path, "give the corpus a larger context")
        super().__init__(
            path,
            context=context,
            batch=context,
            threads=threads,
            pooling=POOLINGS[pooling],
            writable=writable,
        )
        size = native.llama_model_n_cls_out if self.ranks else native.llama_model_n_embd_out
        self.width: int = size(self._model)

    def embed(self, chunk: Tokens) -> Vector:
        """The embedding [width] of a chunk [context] as a text."""
        before, after = self._text
        return self._computed_of(
            np.concatenate([before, chunk[len(before) : len(chunk) - len(after)], after])
        )

    def score(self, query: Tokens, document: Tokens) -> float:
        """The score of the document, the later part of a chunk [context], for the query, the beginning of
        another.
        """
        before, between, after = self._pair
        asked, told = self._room(len(document))
        text = [before, query[:asked], between, document[len(document) - told :], after]
        return float(self._computed_of(np.concatenate(text))[0])

    def _room(self, context: int) -> tuple[int, int]:
        """Tokens of a query and of a document; of a plain text half of it each."""
        if not self.ranks:
            left = context - sum(map(len, self._text))
            return left // 2, left - left // 2
        left = context - sum(map(len, self._pair))
        query = int(left * _QUERY)
        return query, left - query

    def _computed_of(self, tokens: Tokens) -> Vector:
        self.clear()
        self.decode(tokens, 0)
        return self.embedding(self.width)
