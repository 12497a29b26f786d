"""NVFP4 in a GGUF: its blocks as gguf-py reads them, and where a second scale goes."""

import gguf
import numpy as np
import pytest

from quantmill.formats.ggufio import Value, decode
from quantmill.nvfp4.gguf import packed, scalable, scale_name, together, weights_only
from quantmill.nvfp4.values import dequantize

DENSE = [f"blk.0.ffn_{part}.weight" for part in ("gate", "up", "down")]


def test_blocks_are_what_gguf_py_reads() -> None:
    random = np.random.default_rng(3)
    codes = random.integers(0, 256, (6, 64), np.uint8)
    scales = random.integers(1, 0x7F, (6, 8), np.uint8)
    blocks = packed(codes, scales)
    assert blocks.size == 6 * 2 * 36
    read = gguf.dequantize(blocks.reshape(6, -1), gguf.GGMLQuantizationType.NVFP4)
    assert np.array_equal(read, dequantize(codes, scales, np.float32(1)))


def test_the_first_eight_values_of_sixteen_are_in_the_low_halves() -> None:
    codes = np.arange(16, dtype=np.uint8)
    row = np.tile(codes[0::2] | codes[1::2] << 4, 4).reshape(1, -1)
    block = packed(row, np.array([[0x38, 0xB8, 1, 2]], np.uint8))
    assert block[:4].tolist() == [0x38, 0x38, 1, 2]  # a scale has no sign
    assert block[4:12].tolist() == [low | (low + 8) << 4 for low in range(8)]


@pytest.mark.parametrize(
    ("architecture", "weights", "present", "scaled"),
    [
        ("llama", DENSE, [], DENSE),
        ("falcon", DENSE, [], []),
        ("no such", DENSE, [], []),
        ("qwen3moe", DENSE, [], []),
        ("llama", DENSE, ["blk.0.ffn_up.bias"], [DENSE[0], DENSE[2]]),
        ("gemma4", ["blk.0.ffn_down_exps.weight"], ["blk.0.ffn_down_exps.scale"], []),
        (
            "qwen35moe",
            ["blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_down_exps.weight"],
            [],
            ["blk.0.ffn_down_exps.weight"],
        ),
        ("llama", ["token_embd.weight", "output.weight"], [], ["output.weight"]),
    ],
)
def test_a_second_scale_goes_where_llama_cpp_applies_it(
    architecture: str, weights: list[str], present: list[str], scaled: list[str]
) -> None:
    assert scalable(architecture, weights, {*weights, *present}) == scaled


def test_gate_and_up_of_a_layer_share_a_scale_and_down_has_its_own() -> None:
    other = "blk.1.ffn_up.weight"
    groups = together([*DENSE, other, "blk.0.attn_k.weight", "blk.0.attn_q.weight", "output.weight"])
    assert groups[DENSE[0]] == groups[DENSE[1]] == (DENSE[0], DENSE[1])
    assert groups[DENSE[2]] == (DENSE[2],) and groups[other] == (other,)
    assert groups["blk.0.attn_q.weight"] == ("blk.0.attn_k.weight", "blk.0.attn_q.weight")
    assert groups["output.weight"] == ("output.weight",)
    assert scale_name(other) == "blk.1.ffn_up.scale"


def test_weights_only_is_said_beside_what_the_source_says_of_others() -> None:
    def precisions(kv: dict[str, Value]) -> dict[str, bool]:
        name, precision = (f"general.tensor_extra.{key}" for key in ("name", "prec_a4"))
        return dict(zip(decode(kv[name]), decode(kv[precision]), strict=True))

    assert weights_only({}, []) == {}
    first = weights_only({}, ["b", "a"])
    assert precisions(first) == {"a": False, "b": False}
    assert precisions(weights_only(first, ["c", "a"])) == {"a": False, "b": False, "c": False}
