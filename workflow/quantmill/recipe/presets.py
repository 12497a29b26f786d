"""The base of a recipe: llama.cpp's own mixture of a preset, or one type for all."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from quantmill.engine.dryrun import Mixture, dry_run
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header
from quantmill.formats.types import fallback, named, writable
from quantmill.model.header import for_dry_run


def _numbers(table: str) -> dict[str, int]:
    """The numbers of a table of `name=number`."""
    pairs = (entry.split("=") for entry in table.split())
    return {name: int(number) for name, number in pairs}


PRESETS: Final = _numbers("""
    F32=0      F16=1      BF16=32    Q8_0=7     Q6_K=18
    Q5_K_M=17  Q5_K_S=16  Q5_1=9     Q5_0=8
    Q4_K_M=15  Q4_K_S=14  Q4_1=3     Q4_0=2     IQ4_NL=25  IQ4_XS=30  MXFP4_MOE=38
    Q3_K_L=13  Q3_K_M=12  Q3_K_S=11  IQ3_M=27   IQ3_S=26   IQ3_XS=22  IQ3_XXS=23
    Q2_K=10    Q2_K_S=21  Q2_0=41    IQ2_M=29   IQ2_S=28   IQ2_XS=20  IQ2_XXS=19
    TQ2_0=37   TQ1_0=36   IQ1_M=31   IQ1_S=24   Q1_0=40
""")
"""Preset -> llama_ftype; source: QUANT_OPTIONS of tools/quantize/quantize.cpp and llama.h."""

ALIASES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# The preset that is closest to one type for all: the file gets its number.
_PRESET_OF_TYPE: Final = {
    "q3_K": "Q3_K_S",
    "q4_K": "Q4_K_S",
    "q5_K": "Q5_K_S",
    "iq2_s": "IQ2_M",
    "mxfp4": "MXFP4_MOE",
}
_NVFP4: Final = 39  # llama_ftype for nvfp4; llama-quantize has no name for it
# llama_ftype of ik_llama.cpp for its own types; source: its llama.h.
_IK_NUMBERS: Final = _numbers("""
    q6_0=135     iq2_k=138    iq3_k=139    iq4_k=140    iq5_k=141    iq6_k=142    iq4_ks=145
    iq2_ks=147   iq4_kss=148  q8_KV=149    iq5_ks=150   iq2_kt=151   iq3_kt=152   iq4_kt=153
    iq3_ks=154   iq2_kl=155   iq1_kt=156
""")


@dataclass(frozen=True)
class Base:
    """What decides a tensor that no rule names: a preset, or one type for all (`type`)."""

    name: str
    file_type: int
    type: str | None = None
    engine: str = "mainline"


def resolve(name: str, where: object = None, engine: str = "mainline") -> Base:
    """The base with this name.

    The exact name of a ggml type (`q4_0`, `q4_K`) is that type for all tensors.
    Any other name is that of a preset, in any case (`Q4_0`, `q4_k_m`).
    QuantmillError where it is neither, where it could be both, and for a preset
    with an engine other than mainline: the mixtures are mainline's.
    """
    types = writable(engine)
    if name in types:
        return of_type(name, engine)
    upper = name.upper()
    if engine != "mainline":
        raise QuantmillError(
            f"base {name} is no type of engine {engine}",
            where,
            "name a type for all, such as iq4_k; template: ik has that engine's own mixtures",
        )
    pure = next((kind for kind in types if kind.upper() == upper), None)
    if name != upper and pure is not None and (upper in PRESETS or upper in ALIASES):
        raise QuantmillError(
            f"base {name} may be the preset {ALIASES.get(upper, upper)} or the type {pure}",
            where,
            f"write {upper} for the preset, {pure} for the type",
        )
    preset = ALIASES.get(upper, upper)
    if preset in PRESETS:
        return Base(preset, PRESETS[preset])
    if (kind := named(name)) is not None:
        what = "is a type of engine ik" if kind in writable("ik") else "is a type that cannot be written"
        raise QuantmillError(f"base {name} {what}", where, "choose another, such as Q8_0, or that engine")
    near = get_close_matches(upper, PRESETS, n=1)
    raise QuantmillError(
        f"base {name} is neither a preset nor a type",
        where,
        f"did you mean {near[0]}?" if near else "take a preset, such as Q4_K_M, or a type, such as q8_0",
    )


def of_type(name: str, engine: str = "mainline") -> Base:
    """One type for all, with the number of the closest preset."""
    number = PRESETS.get(_PRESET_OF_TYPE.get(name, name.upper()), _NVFP4)
    return Base(name, _IK_NUMBERS.get(name, number), name, engine)


def mixture(header: Header, base: Base, *, imatrix: bool) -> Mixture:
    """The type of every tensor with `base`, from llama.cpp's dry run without overrides."""
    with for_dry_run(header) as path:
        number = base.file_type if base.type is None else PRESETS["Q8_0"]
        native = dry_run(path, number, imatrix=imatrix, where=header.path)
    if base.type is None:
        return native
    types = dict(native.types)
    fallbacks = {}
    for tensor in header.tensors:
        if tensor.name in native.quantizable:
            types[tensor.name] = fallback(base.type, tensor.shape[0], base.engine)
            if types[tensor.name] != base.type:
                fallbacks[tensor.name] = base.type
    return Mixture(types, fallbacks, native.quantizable)
