"""Values of the config in the metadata of files, as GGUF has them."""

from __future__ import annotations

from pathlib import Path

from quantmill.formats import general, ggufio

HEADER = ggufio.Header(Path("m.gguf"), (), (), {})


def test_values_come_back() -> None:
    values = {"a.name": "größe", "a.count": 3, "a.top_k": -1, "a.temp": 0.5, "a.tags": ["x", ""]}
    encoded = general.encoded(values)
    assert {key: ggufio.decode(value) for key, value in encoded.items()} == values
    assert [kind for kind, _ in encoded.values()] == [8, 4, 5, 6, 9]


def test_the_sources_own_base_models_stay() -> None:
    given = {"general.name": "n", "general.base_model.count": 1, "general.base_model.0.name": "b"}
    assert general.beside(HEADER, given) == given
    own = ggufio.Header(Path("m.gguf"), (), (), general.encoded({"general.base_model.count": 2}))
    assert general.beside(own, given) == {"general.name": "n"}


def test_a_tokenizers_values_are_measured() -> None:
    assert general.unmeasured({"general.name": "n", "tokenizer.chat_template": "t"}) == {"general.name": "n"}
