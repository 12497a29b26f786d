"""The order of a corpus's chunks."""

import pytest

from quantmill.formats.corpus import Corpus, domains, interleave
from reports import complete


@pytest.mark.parametrize("counts", [[32, 32], [50, 30, 15, 5], [1, 99], [7], [3, 0, 4], [10] * 7])
def test_every_window_holds_the_sources_at_their_shares(counts):
    order = interleave(counts)
    total = sum(counts)
    assert [order.count(source) for source in range(len(counts))] == counts
    for first in range(total):
        for last in range(first + 1, total + 1):
            for source, count in enumerate(counts):
                got = order[first:last].count(source)
                assert abs(got - (last - first) * count / total) < 2


def test_the_domain_of_each_chunk_follows_from_the_report():
    sources = [{"name": name, "chunks": chunks} for name, chunks in (("a", 3), ("none", 0), ("b", 1))]
    assert domains(complete(Corpus, {"sources": sources})) == ["a", "a", "b", "a"]
