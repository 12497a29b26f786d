"""The statements, held against what ggufpacker demands: quoted here, so that it need not be there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from quantmill.formats.proof import Lock
from quantmill.proof import attest
from reports import complete, sha

# ggufpacker 0.4.2 and 0.5, attest.py: `_HEX64`, `_TYPE_ARG`; conversion_attest.py: `_MODEL_NAME`.
HEX64 = re.compile(r"^[0-9a-f]{64}$")
TYPE_ARG = re.compile(r"^[A-Za-z0-9_]{1,32}$")


def check_name(name: Any) -> None:
    """`_check_name`: a plain name of a file beside the statement."""
    assert isinstance(name, str) and name and name not in (".", "..")
    assert "/" not in name and "\\" not in name and name == name.strip() and not Path(name).is_absolute()


def check_digest(resource: Any) -> None:
    """`_check_digest`."""
    assert HEX64.match(resource["digest"]["sha256"])


def check_common(statement: dict[str, Any], predicate_type: str, needed: tuple[str, ...]) -> None:
    """What `load_statement` and `load_conversion_statement` demand alike."""
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == (
        f"https://github.com/theadamdanielsson/ggufpacker/attestation/{predicate_type}"
    )
    (subject,) = statement["subject"]  # exactly one
    check_name(subject["name"])
    check_digest(subject)
    predicate = statement["predicate"]
    for key in needed:
        assert isinstance(predicate[key], dict)
    assert isinstance(predicate["builder"]["buildIdentity"], dict)
    # Where it is there it is the subject's digest; it claims a rebuilding, which the lock does not.
    assert "reDerivedDigest" not in predicate["reproducibility"]


def check_derivation(statement: dict[str, Any]) -> None:
    """`load_statement` of ggufpacker."""
    check_common(statement, "gguf-derivation/v0", ("baseModel", "recipe", "builder", "reproducibility"))
    predicate = statement["predicate"]
    check_name(predicate["baseModel"]["name"])
    check_digest(predicate["baseModel"])
    recipe = predicate["recipe"]
    assert TYPE_ARG.match(recipe["quantType"])
    if recipe["useImatrix"]:
        check_name(recipe["imatrix"]["name"])
        check_digest(recipe["imatrix"])


def check_conversion(statement: dict[str, Any]) -> None:
    """`load_conversion_statement` of ggufpacker 0.5."""
    check_common(statement, "gguf-conversion/v0", ("source", "recipe", "builder", "reproducibility"))
    predicate = statement["predicate"]
    assert isinstance(predicate["recipe"]["command"], str)
    assert "--model-name" not in predicate["recipe"]["command"]
    check_name(predicate["source"]["directoryName"])
    files = predicate["source"]["files"]
    assert files and len({file["name"] for file in files}) == len(files)
    for file in files:
        name = file["name"]
        assert not name.startswith("/") and ".." not in Path(name).parts and name == name.strip()
        check_digest(file)


def lock(**more: Any) -> Lock:
    """A lock of two recipes, of which one is a preset."""
    files = [{"file": "m-Q8_0.gguf", "bytes": 5, "sha256": sha("Q8_0")}]
    parts = [
        {"file": f"m-mix/m-mix-0000{n}-of-00002.gguf", "bytes": 4, "sha256": sha(f"{n}")} for n in (1, 2)
    ]
    settings = {"imatrix": {"file": "m-imatrix.gguf", "dataset": "text", "chunks": 4}}
    given = {
        "model": "m",
        "source": {"sha256": sha("x"), "files": [{"file": "m.gguf", "bytes": 9, "sha256": sha("x")}]},
        "imatrix": {"sha256": sha("imatrix"), "bytes": 3, "named": settings["imatrix"]},
        "recipes": {
            "Q8_0": {
                "imatrix": True,
                "preset": "Q8_0",
                "published": files,
                "files": files,
                "settings": settings,
                "plan": sha("plan"),
            },
            "mix": {"published": parts, "files": parts, "settings": settings, "plan": sha("other")},
        },
        "engines": {"mainline": {"package": "llama-cpp-python", "version": "1", "compiler": "gcc"}},
        "versions": {"quantmill": "0.1"},
    }
    made: Any = complete(Lock, given)
    made["source"] |= more
    return made  # type: ignore[no-any-return]


def test_a_statement_of_each_file_is_one_that_ggufpacker_reads() -> None:
    made = attest.statements(lock(), sha("lock"))
    assert list(made) == [
        "m-Q8_0.gguf.derivation.json",
        "m-mix/m-mix-00001-of-00002.gguf.derivation.json",
        "m-mix/m-mix-00002-of-00002.gguf.derivation.json",
    ]
    for statement in made.values():
        check_derivation(statement)
        assert statement["predicate"]["reproducibility"]["lock"]["digest"] == {"sha256": sha("lock")}
    preset, part, _ = made.values()
    assert preset["predicate"]["recipe"] == {
        "quantType": "Q8_0",
        "outputFormat": "gguf",
        "useImatrix": True,
        "plan": {"digest": {"sha256": sha("plan")}},
        "command": "llama-quantize --imatrix m-imatrix.gguf <baseModel> <output> Q8_0",
        "imatrix": {
            "name": "m-imatrix.gguf",
            "digest": {"sha256": sha("imatrix")},
            "sizeBytes": 3,
        },
    }
    # What llama-quantize cannot make by a preset it refuses to make: never something else.
    assert (part["predicate"]["recipe"]["quantType"], part["predicate"]["recipe"]["useImatrix"]) == (
        "custom",
        False,
    )
    assert "command" not in part["predicate"]["recipe"]


def test_a_source_of_the_hub_is_named_by_its_commit() -> None:
    hub = {"repo": "you/model", "revision": "0" * 40, "file": "q/m.gguf"}
    base = attest.statements(lock(hub=hub), "")["m-Q8_0.gguf.derivation.json"]["predicate"]["baseModel"]
    assert base["uri"] == f"pkg:huggingface/you/model@{'0' * 40}"
    # `_HF_RESOLVE` of ggufpacker, for --check-source
    assert re.match(
        r"^https://huggingface\.co/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([^?]+)$", base["downloadLocation"]
    )


def test_a_split_source_is_its_first_file_with_the_others() -> None:
    files = [{"file": f"m-0000{n}-of-00002.gguf", "bytes": n, "sha256": sha(f"s{n}")} for n in (1, 2)]
    base = attest.statements(lock(files=files), "")["m-Q8_0.gguf.derivation.json"]["predicate"]["baseModel"]
    assert (base["name"], base["digest"]["sha256"]) == ("m-00001-of-00002.gguf", sha("s1"))
    assert [other["name"] for other in base["otherFiles"]] == ["m-00002-of-00002.gguf"]


@pytest.mark.parametrize("to", ["f16", "auto"])
def test_a_converted_source_has_a_statement_that_the_others_hang_on(to: str) -> None:
    files = {"model.safetensors": sha("weights"), "config.json": sha("config")}
    checkpoint = {"name": "Model-1B", "files": files, "to": to, "pre_tokenizer": None, "converter": sha("c")}
    made = attest.statements(lock(checkpoint=checkpoint), sha("lock"))
    conversion = made["m.gguf.conversion.json"]
    check_conversion(conversion)
    assert "--mmproj" not in conversion["predicate"]["recipe"]["command"]
    of_projector = attest.statements(lock(checkpoint=checkpoint | {"projector": True}), sha("lock"))
    assert "--mmproj" in of_projector["m.gguf.conversion.json"]["predicate"]["recipe"]["command"]
    assert [file["name"] for file in conversion["predicate"]["source"]["files"]] == sorted(files)
    # `verify_chain`: the first link, checked before all else
    base = made["m-Q8_0.gguf.derivation.json"]["predicate"]["baseModel"]
    assert base["digest"] == conversion["subject"][0]["digest"]
