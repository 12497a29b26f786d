"""The same bytes, types and fallbacks as ik_llama.cpp's own llama-quantize."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import ik
from models import write_llama
from quantmill.formats import ggufio, types
from quantmill.formats.imatrix import Entry, Imatrix, as_legacy, write_dat
from quantmill.recipe import rules
from quantmill.recipe.render import facts, render

pytestmark = ik.NEEDED

TESTS = Path(__file__).parents[1]
TEMPLATES = TESTS.parent / "recipes"

# All of its own, and of those that it shares with mainline what its mixtures use. Its tables for
# iq1_m, iq1_s and the iq2 of mainline take it up to half a minute to make: they were compared once.
SHARED = [
    "q4_0",
    "q5_0",
    "q8_0",
    "q3_K",
    "q4_K",
    "q5_K",
    "q6_K",
    "iq4_nl",
    "iq4_xs",
    "iq3_xxs",
    "mxfp4",
    "bf16",
]
KINDS = [*sorted(types.IK_TYPES), *SHARED]
EXPERTS = 3


def write(path: Path, kinds: list[str] = KINDS, *, width: int = 256, dtype: type = np.float16) -> Path:
    """A model with a layer for each of the kinds: a small matrix and some of experts."""
    random = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(len(kinds))
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(width)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(1)
    writer.add_token_list(["a", "b"])
    for layer in range(len(kinds)):
        for role, shape in (("attn_q", (12, width)), ("ffn_up_exps", (EXPERTS, 8, width))):
            values = random.standard_normal(shape) * random.lognormal(-3, 1, (shape[-2], 1))
            writer.add_tensor(f"blk.{layer}.{role}.weight", values.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def custom_q(kinds: list[str]) -> str:
    """Each kind for its layer."""
    return ",".join(f"blk\\.{layer}\\.={kind}" for layer, kind in enumerate(kinds))


def importance(header: ggufio.Header) -> Imatrix:
    """Made-up importance; of the experts the second was never seen."""
    random = np.random.default_rng(7)
    entries = {}
    for tensor in header.tensors:
        counts = np.array([1300, 0, 77], np.float32) if len(tensor.shape) == 3 else np.float32([1300])
        sums = random.lognormal(0, 2, (len(counts), tensor.shape[0])) * counts[:, None]
        entries[tensor.name] = Entry(sums.astype(np.float32), counts)
    return Imatrix("made up", 3, 512, entries)


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["with imatrix", "without"])
def test_same_bytes_for_every_type(tmp_path: Path, dtype: type) -> None:
    # Codebooks of the trellis types take seconds to make, so that they come once.
    kinds = KINDS if dtype is np.float16 else [kind for kind in KINDS if not kind.endswith("_kt")]
    source, made, dat = (tmp_path / name for name in ("source.gguf", "made.gguf", "imatrix.dat"))
    write(source, kinds, dtype=dtype)
    write_dat(dat, importance(ggufio.read_header(source)))
    options = ["--imatrix", dat] if dtype is np.float16 else ["--ignore-imatrix-rules"]
    ik.llama_quantize(source, made, "Q8_0", "--custom-q", custom_q(kinds), *options)
    differing = ik.child("compare", source, made, dat if dtype is np.float16 else "-")
    assert [name.split()[1] for name in differing] == [kind for kind in kinds for _ in range(2)]
    assert [name for name, differs in differing.items() if differs] == []


def test_a_quantized_source(tmp_path: Path) -> None:
    whole, source, made = (tmp_path / f"{name}.gguf" for name in ("whole", "source", "made"))
    kinds = ["iq4_ks", "iq3_k", "iq2_ks"]
    write(whole, kinds)
    ik.llama_quantize(whole, source, "Q8_0")
    ik.llama_quantize(source, made, "Q4_0", "--custom-q", custom_q(kinds))
    differing = ik.child("compare", source, made, "-")
    assert len(differing) == 6 and not any(differing.values())


def test_fallbacks_are_its_own(tmp_path: Path) -> None:
    source = write(tmp_path / "source.gguf", width=576)
    native = ik.dry_run(source, "Q8_0", "--custom-q", custom_q(KINDS))
    ours = {f"blk.{i}.attn_q.weight": types.fallback(kind, 576, "ik") for i, kind in enumerate(KINDS)}
    assert {name: native[name] for name in ours} == ours


def test_the_table_of_types_is_its_librarys() -> None:
    native = ik.child("types")
    ours = {name: list(types.known(name)[1:]) for name in types.writable("ik")}
    assert {name: native[name] for name in ours} == ours
    # what the two libraries mean by the same numbers is not the same
    assert (native["i2_s"][0], native["q1_0_g128"][0]) == (36, 41)


def test_importance_is_what_it_reads(tmp_path: Path) -> None:
    imatrix = importance(ggufio.read_header(write(tmp_path / "x.gguf")))
    write_dat(tmp_path / "imatrix.dat", imatrix)
    read, ours = ik.read_dat(tmp_path / "imatrix.dat"), as_legacy(imatrix).entries
    assert read.keys() == ours.keys()
    assert all(np.array_equal(ours[name].mean().reshape(-1), read[name]) for name in read)
    plain = imatrix.entries
    assert not all(np.array_equal(plain[name].mean().reshape(-1), read[name]) for name in read)


TIERS = [
    "IQ6_K",
    "IQ5_K",
    "IQ4_K",
    "IQ3_K",
    "IQ2_K",
    "IQ5_KS",
    "IQ4_KS",
    "IQ4_KSS",
    "IQ3_KS",
    "IQ2_KS",
    "IQ2_KL",
    "IQ4_KT",
    "IQ3_KT",
    "IQ2_KT",
    "IQ1_KT",
    "Q6_0",
    "Q8_KV",
]


@pytest.mark.parametrize(
    ("model", "with_imatrix"),
    [("llama", True), ("llama", False), ("moe", True), ("moe", False), ("narrow", False)],
)
def test_the_mixtures_of_the_template_are_its_own(tmp_path: Path, model: str, with_imatrix: bool) -> None:
    source = TESTS / f"data/tiny-{model}.gguf"
    if model == "narrow":  # rows that no k-quant fits, embeddings that are the output
        source = write_llama(tmp_path / "narrow.gguf", dtype=np.float16)
    header = ggufio.read_header(source)
    template, where = (TEMPLATES / "ik.yaml.j2").read_text("utf-8"), "ik.yaml.j2"
    options = ["--imatrix", TESTS / f"data/llama-imatrix-{model}.dat"] if with_imatrix else []
    for tier in TIERS:
        native = ik.dry_run(source, tier, "--ignore-imatrix-rules", *options)
        changed = frozenset(t.name for t in header.tensors if native[t.name] != t.type)
        text = render(
            template, {} if with_imatrix else {"imatrix": "none"}, facts(header) | {"recipe": tier}, where
        )
        recipe = rules.parse(text, where)
        decided = rules.assign(recipe, header, changed, where)
        expected = {n: decided[n].type if n in decided else recipe.base.type for n in changed}
        widths = {tensor.name: tensor.shape[0] for tensor in header.tensors}
        ours = {n: types.fallback(kind, widths[n], "ik") for n, kind in expected.items()}
        assert ours == {name: native[name] for name in changed}, tier
