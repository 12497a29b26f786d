"""A checkpoint's export: modelopt's own bytes, everything else untouched, nothing half written."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

import checkpoints
from quantmill.checkpoint import export
from quantmill.checkpoint.forms import FORMS, Form, write_configs
from quantmill.checkpoint.safetensors import Checkpoint
from quantmill.errors import QuantmillError
from quantmill.nvfp4 import values as nvfp4
from quantmill.progress import Log
from quantmill.stages import VERSIONS

QUANTIZED = [f"model.layers.{n}.mlp.{x}_proj" for n in (0, 1) for x in ("gate", "up", "down")]
KEPT = sorted(
    [
        "lm_head",
        "model.embed_tokens",
        *(f"model.layers.{n}.self_attn.{x}_proj" for n in (0, 1) for x in "qkvo"),
    ]
)
CALIBRATION = {"corpus": "calibration", "chunks": 2, "context": 64}
GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "modelopt.json").read_text("utf-8"))


def run(
    source: Path,
    folder: Path,
    threads: int = 1,
    form: str = "modelopt",
    largest: dict[str, float] | None = None,
) -> Path:
    """Export `source` to `folder`/new, its report beside it; W4A4 where inputs are given."""
    out = folder / "new"
    activations = None
    if largest is not None:
        activations = folder / "activations.json"
        activations.write_text(json.dumps(CALIBRATION | {"largest": largest}), encoding="utf-8")
    args = argparse.Namespace(
        spec={"config": {"recipe": "MFP4", "form": form}},
        source=source,
        activations=activations,
        out=out,
        report=folder / "new.json",
        threads=threads,
    )
    export.main(args, Log(folder / "log"))
    return out


def raw(folder: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a checkpoint as the package safetensors reads them: dtype, shape, data."""
    return {
        name: entry
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in safetensors.deserialize(path.read_bytes())
    }


def digests(folder: Path) -> dict[str, str]:
    """As tests/data/golden_modelopt.py notes them."""
    return {
        name: f"{entry['dtype']} {entry['shape']} {hashlib.sha256(entry['data']).hexdigest()[:16]}"
        for name, entry in raw(folder).items()
    }


@pytest.mark.parametrize("case", GOLDEN)
def test_the_bytes_and_the_config_are_modelopts(tmp_path: Path, case: str) -> None:
    source = checkpoints.write(tmp_path / "source", *checkpoints.CASES[case])
    out = run(source, tmp_path)
    assert digests(out) == GOLDEN[case]["tensors"]
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config.pop("quantization_config") == GOLDEN[case]["quantization_config"]
    assert config == json.loads((source / "config.json").read_text("utf-8"))
    assert VERSIONS["checkpoint.export"] == 3, "the goldens are of version 3: note them anew with another"


def seen(case: str) -> dict[str, float]:
    """What modelopt saw enter the MLPs of a case, by the GGUF's names of the weights."""
    largest = {}
    for module, scale in GOLDEN[case]["input_scales"].items():
        kind = "_shexp" if "shared_expert" in module else "_exps" if "experts" in module else ""
        layer, side = module.split(".")[2], module.rpartition(".")[2].removesuffix("_proj")
        largest[f"blk.{layer}.ffn_{side}{kind}.weight"] = float(np.float32(scale * 2688))
    return largest


def scales(folder: Path, suffix: str) -> dict[str, float]:
    """By module the scale of that name."""
    return {
        name.removesuffix(suffix): float(np.frombuffer(entry["data"], np.float32)[0])
        for name, entry in raw(folder).items()
        if name.endswith(suffix)
    }


@pytest.mark.parametrize("case", GOLDEN)
def test_with_activations_too_they_are_modelopts(tmp_path: Path, case: str) -> None:
    source = checkpoints.write(tmp_path / "source", *checkpoints.CASES[case])
    out = run(source, tmp_path, largest=seen(case))
    given = digests(out)
    inputs = {name: given.pop(name) for name in list(given) if name.endswith(".input_scale")}
    assert given == GOLDEN[case]["tensors"]
    assert scales(out, ".input_scale") == GOLDEN[case]["input_scales"]
    assert all(digest.startswith("F32 [] ") for digest in inputs.values())
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["quantization_config"] == GOLDEN[case]["W4A4"]
    outer = json.loads((out / "hf_quant_config.json").read_text("utf-8"))["quantization"]
    assert outer["quant_algo"] == "NVFP4"
    facts = json.loads((tmp_path / "new.json").read_text("utf-8"))
    assert facts["quant_algo"] == "NVFP4" and facts["calibration"] == CALIBRATION
    assert all(row["input"] > 0 for row in facts["quantized"])


def test_either_of_gate_and_up_or_both_fused_tells_their_input(tmp_path: Path) -> None:
    source, largest = checkpoints.write(tmp_path / "source"), seen("llama-BF16")
    expected = GOLDEN["llama-BF16"]["input_scales"]
    largest.pop("blk.0.ffn_gate.weight"), largest.pop("blk.1.ffn_gate.weight")
    largest["blk.1.ffn_gate_up.weight"] = largest.pop("blk.1.ffn_up.weight")
    assert scales(run(source, tmp_path, largest=largest), ".input_scale") == expected


@pytest.mark.parametrize("value", [None, 0.0])
def test_a_weight_that_nothing_was_seen_to_enter_is_refused(tmp_path: Path, value: float | None) -> None:
    largest = seen("llama-BF16")
    largest.pop("blk.1.ffn_down.weight")
    if value is not None:
        largest["blk.1.ffn_down.weight"] = value
    with pytest.raises(QuantmillError, match=r"layers\.1\.mlp\.down_proj: no activation entered it"):
        run(checkpoints.write(tmp_path / "source"), tmp_path, largest=largest)
    assert not (tmp_path / "new").exists()


def test_what_is_not_mlp_stays_bit_for_bit_and_the_tokenizer_goes_along(tmp_path: Path) -> None:
    source = checkpoints.write(tmp_path / "source", checkpoints.MOE)
    (source / "README.md").write_text("of the source alone", encoding="utf-8")
    (source / "pytorch_model.bin").write_bytes(b"the same weights again")
    (source / "LICENSE").write_text("a licence", encoding="utf-8")
    before, after = raw(source), raw(run(source, tmp_path))
    same = {name for name in before if after.get(name) == before[name]}
    assert {name for name in before if "_proj" not in name or "attn" in name} == same
    for name in ("tokenizer_config.json", "generation_config.json", "LICENSE"):
        assert (tmp_path / "new" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "new" / "README.md").exists()
    assert not (tmp_path / "new" / "pytorch_model.bin").exists()


def test_shards_stay_shards_and_threads_change_nothing(tmp_path: Path) -> None:
    whole = run(checkpoints.write(tmp_path / "whole"), tmp_path)
    (tmp_path / "two").mkdir()
    sharded = run(checkpoints.write(tmp_path / "sharded", shards=3), tmp_path / "two", threads=3)
    assert digests(sharded) == digests(whole)
    index = json.loads((sharded / "model.safetensors.index.json").read_text("utf-8"))
    names = {
        name: path.name
        for path in sharded.glob("*.safetensors")
        for name, _ in safetensors.deserialize(path.read_bytes())
    }
    assert index["weight_map"] == names
    assert index["metadata"]["total_size"] == sum(len(entry["data"]) for entry in raw(sharded).values())


def test_fused_experts_come_out_one_by_one(tmp_path: Path) -> None:
    tensors = checkpoints.tensors(checkpoints.MOE, "BF16")
    source = checkpoints.write(tmp_path / "source", checkpoints.MOE)
    single = digests(run(source, tmp_path))
    experts = "model.layers.0.mlp.experts"
    parts = {
        name: np.stack(
            [tensors.pop(f"{experts}.{e}.{name}_proj.weight")[1] for e in range(checkpoints.EXPERTS)]
        )
        for name in ("gate", "up", "down")
    }
    tensors[f"{experts}.gate_up_proj"] = ("BF16", np.concatenate([parts["gate"], parts["up"]], axis=1))
    tensors[f"{experts}.down_proj"] = ("BF16", parts["down"])
    checkpoints.save(source / "model.safetensors", tensors)
    assert digests(run(source, tmp_path)) == single

    tensors[f"{experts}.gate_up_proj"] = ("BF16", np.zeros((3, 64, 66), np.float32))
    checkpoints.save(source / "model.safetensors", tensors)
    with pytest.raises(QuantmillError, match=r"down_proj: fused experts of the shape .* an unknown layout"):
        run(source, tmp_path)


def test_the_report_says_what_the_folder_holds(tmp_path: Path) -> None:
    out = run(checkpoints.write(tmp_path / "source"), tmp_path)
    facts = json.loads((tmp_path / "new.json").read_text("utf-8"))
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {f["file"]: (f["bytes"], f["sha256"]) for f in facts["files"]} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }
    assert facts["bytes"] == sum(map(len, files.values()))
    assert facts["dtypes"]["U8"] == {"tensors": 6, "bytes": 6 * 64 * 96 // 2}
    assert facts["parameters"] == facts["source"]["bytes"] // 2
    assert facts["quantized_parameters"] == 6 * 64 * 96
    weights = sum(entry["bytes"] for entry in facts["dtypes"].values())
    assert facts["bpw"] == weights * 8 / facts["parameters"] < 16
    assert {role: spread["matrices"] for role, spread in facts["by_role"].items()} == {
        "down_proj": 2,
        "gate_proj": 2,
        "up_proj": 2,
    }
    assert facts["source"]["dtypes"] == {"BF16": {"tensors": 21, "bytes": facts["source"]["bytes"]}}
    assert (facts["form"], facts["layers"]) == ("modelopt", 2)
    errors = [row["error"] for row in facts["quantized"]]
    assert len(errors) == 6 and max(errors) == facts["error"]["max"] and 0.05 < min(errors) < 0.15


def test_a_new_export_replaces_the_old_one_whole(tmp_path: Path) -> None:
    out = run(checkpoints.write(tmp_path / "source"), tmp_path)
    (out / "stale").write_text("", encoding="utf-8")
    run(tmp_path / "source", tmp_path)
    assert not (out / "stale").exists()


def change(name: str, data: np.ndarray, dtype: str = "BF16") -> Callable[[Path], None]:
    """Another tensor in the place of one."""

    def apply(source: Path) -> None:
        tensors = checkpoints.tensors(checkpoints.LLAMA, "BF16")
        checkpoints.save(source / "model.safetensors", tensors | {name: (dtype, data)})

    return apply


def configured(**fields: Any) -> Callable[[Path], None]:
    """Other fields of config.json."""
    return lambda source: (source / "config.json").write_text(
        json.dumps(checkpoints.LLAMA | fields), encoding="utf-8"
    )


UP = "model.layers.0.mlp.up_proj.weight"
DROWNED = np.full((96, 64), 2.0**-30, np.float32)
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a width that is no multiple of 16": (
        change(UP, np.zeros((96, 40), np.float32)),
        f"{UP}: rows of 40 values, no multiple of 16; NVFP4 cannot hold them",
    ),
    "NaN": (change(UP, np.full((96, 64), np.nan, np.float32)), f"{UP}: has values that are not finite"),
    "infinity": (change(UP, np.full((96, 64), -np.inf, np.float32)), f"{UP}: has values that are not finite"),
    "integers": (change(UP, np.zeros((96, 64)), "U8"), f"{UP}: is U8: quantized already"),
    "weights that a shared scale drowns": (change(UP, DROWNED), "has a relative error of 1 read back"),
    "a quantized checkpoint": (configured(quantization_config={}), "is quantized already"),
    "no config": (lambda source: (source / "config.json").unlink(), "no such file"),
    "no MLP": (configured(num_hidden_layers=0), "no MLP weights by the names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    source = checkpoints.write(tmp_path / "source")
    apply, message = REFUSED[case]
    apply(source)
    with pytest.raises(QuantmillError) as refused:
        run(source, tmp_path)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "log"}


DAMAGE: dict[str, Callable[[dict[str, Any]], None]] = {
    "zeroed": lambda t: t["model.layers.1.mlp.down_proj.weight"].update(data=bytes(96 * 64 // 2)),
    "not a number": lambda t: t["model.layers.1.mlp.down_proj.weight_scale"].update(data=b"\x7f" * 384),
    "another input's scale": lambda t: t["model.layers.1.mlp.down_proj.input_scale"].update(data=bytes(4)),
    "another head": lambda t: t["lm_head.weight"].update(data=t["lm_head.weight"]["data"][::-1]),
    "a tensor gone": lambda t: t.pop("lm_head.weight"),
    "another shape": lambda t: t["lm_head.weight"].update(shape=[64, 48]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_reading_back_sees_what_went_wrong(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(form: Form, folder: Path, *given: Any) -> None:
        write_weights(form, folder, *given)
        tensors = raw(folder)
        DAMAGE[case](tensors)
        header, data = {}, b""
        for name, entry in tensors.items():
            places = [len(data), len(data) + len(entry["data"])]
            header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": places}
            data += entry["data"]
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)

    write_weights = export.write_weights
    monkeypatch.setattr(export, "write_weights", damaged)
    with pytest.raises(QuantmillError, match=r"read back|was to stay|is None, not|\(64, 48\)|was calibrated"):
        run(checkpoints.write(tmp_path / "source"), tmp_path, largest=seen("llama-BF16"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("ignore", [["model.layers.0.mlp.up_proj", *KEPT], ["lm_head"], []])
def test_a_wrong_exclude_list_is_seen(tmp_path: Path, form: Form, ignore: list[str]) -> None:
    out = run(checkpoints.write(tmp_path / "source"), tmp_path, form=form.name)
    form.check(out, QUANTIZED, KEPT)
    write_configs(form, out, {}, ignore)
    with pytest.raises(QuantmillError, match="stands wrongly with the exclude list"):
        form.check(out, QUANTIZED, KEPT)


def test_the_form_of_compressed_tensors_renames_and_takes_the_reciprocal(tmp_path: Path) -> None:
    source = checkpoints.write(tmp_path / "source")
    (tmp_path / "other").mkdir()
    ours = raw(run(source, tmp_path))
    out = run(source, tmp_path / "other", form="compressed-tensors")
    theirs = raw(out)
    renamed = {".weight": ".weight_packed", ".weight_scale": ".weight_scale"}
    for module in QUANTIZED:
        for one, other in renamed.items():
            assert theirs.pop(f"{module}{other}") == ours.pop(f"{module}{one}")
        one, other = ours.pop(f"{module}.weight_scale_2"), theirs.pop(f"{module}.weight_global_scale")
        assert (other["dtype"], other["shape"]) == ("F32", [1])
        assert np.frombuffer(other["data"], np.float32) == 1 / np.frombuffer(one["data"], np.float32)
    assert theirs == ours
    assert not (out / "hf_quant_config.json").exists()
    config = json.loads((out / "config.json").read_text("utf-8"))["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and config["ignore"] == KEPT
    facts = json.loads((tmp_path / "other" / "new.json").read_text("utf-8"))
    assert facts["form"] == "compressed-tensors" and facts["exclude"] == KEPT
    assert config["config_groups"]["group_0"]["input_activations"] is None


def test_compressed_tensors_has_the_inputs_scale_as_reciprocal_too(tmp_path: Path) -> None:
    """compressed-tensors 0.20: `NVFP4` of quant_scheme.py, and its own converter from modelopt's form."""
    source = checkpoints.write(tmp_path / "source")
    out = run(source, tmp_path, form="compressed-tensors", largest=seen("llama-BF16"))
    expected = {
        name: float(np.float32(1) / np.float32(scale))
        for name, scale in GOLDEN["llama-BF16"]["input_scales"].items()
    }
    assert scales(out, ".input_global_scale") == expected
    group = json.loads((out / "config.json").read_text("utf-8"))["quantization_config"]["config_groups"][
        "group_0"
    ]
    assert group["input_activations"] == group["weights"] | {"dynamic": "local", "observer": "static_minmax"}


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoints.write(tmp_path / "source")
    out = run(source, tmp_path)
    before = digests(out)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(QuantmillError, match=r"needs [\d,]+ bytes, the disk has 1,000 left"):
        run(source, tmp_path)
    monkeypatch.undo()

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nvfp4, "quantize", full)
    with pytest.raises(QuantmillError, match=r"cannot be written \(No space left on device\)"):
        run(source, tmp_path)
    assert digests(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "new", "new.json", "log"}
    assert len(Checkpoint(out).tensors) == len(before)
