"""The self-test passes with the engines installed here, and sees engines that compute something else."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from quantmill.engine import library
from quantmill.selftest import run
from quantmill.selftest.model import Model, Values, generate


def installed(engine: str) -> bool:
    try:
        library.check(engine)
    except library.QuantmillError:
        return False
    return True


@pytest.mark.parametrize("engine", ["mainline", "ik"])
def test_the_engines_installed_here_pass(engine: str) -> None:
    if not installed(engine):
        pytest.skip(f"{engine} cannot be had here")
    command = [sys.executable, "-m", "quantmill.selftest.run", "--engine", engine]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, last_case(engine), "")
    for name in run.TOLERANCES:
        for kind in ("dense", "with experts"):
            assert f"{name} weights, {kind}, batch of 512\n" in done.stdout
            assert f"{name} weights, {kind}, token by token\n" in done.stdout


def last_case(engine: str) -> str:
    return f"iq4_xs weights, with experts{', in place' if engine == 'mainline' else ''}, token by token"


def loses_a_product_in_32(name: str) -> Callable[..., Model]:
    """Numbers without every 32nd column of a weight: an engine that multiplies all is as far off."""

    def generated(type_name: str, *, experts: bool) -> Model:
        model = generate(type_name, experts=experts)
        weight = model.values[name].copy()
        weight[..., 31::32] = 0
        return replace(model, values=model.values | {name: weight})

    return generated


@pytest.mark.parametrize(
    ("type_name", "experts", "weight"),
    [
        ("f32", False, "blk.0.attn_q"),
        ("q8_0", False, "blk.0.attn_output"),
        ("q4_K", False, "blk.0.ffn_down"),
        ("q6_K", False, "output"),
        ("iq4_xs", True, "blk.0.ffn_up_exps"),
    ],
)
def test_one_product_in_32_is_missed(
    monkeypatch: pytest.MonkeyPatch, type_name: str, experts: bool, weight: str
) -> None:
    monkeypatch.setattr(run, "generate", loses_a_product_in_32(weight))
    tried: list[str] = []
    with pytest.raises(run.WrongValuesError, match=r"batch of 512: a token's logits are up to 0\.\d+ off"):
        run.examine("mainline", type_name, experts, tried.append)
    assert tried[-1].startswith(f"{type_name} weights, ")


def test_a_quantizer_that_loses_too_much_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "generate", lambda *names, **more: replace(generate(*names, **more), lost=0.5))
    with pytest.raises(
        run.WrongValuesError, match=r"^q8_0 weights, dense: quantizing loses 0\.50 of a weight"
    ):
        run.examine("mainline", "q8_0", False, lambda tried: None)


def test_wrong_token_by_token_alone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = run._one_by_one
    monkeypatch.setattr(run, "_one_by_one", lambda *arguments: right(*arguments) * np.float32(1.2))
    with pytest.raises(run.WrongValuesError, match=r"^q4_0 weights, dense, token by token: a token's logits"):
        run.examine("mainline", "q4_0", False, lambda tried: None)


def test_exit_code_3_and_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_batch", lambda loaded, tokens: np.full((512, 512), np.nan, np.float32))
    monkeypatch.setattr(sys, "argv", ["run"])
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert stop.value.code == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "f32 weights, dense, batch of 512: NaN or infinity among the logits"


def logits() -> Values:
    return np.random.default_rng(1).standard_normal((64, 512), np.float32)


def test_rounding_is_no_fault() -> None:
    noise = 0.05 * np.random.default_rng(2).standard_normal((64, 512), np.float32)
    assert run.compare(logits() + noise, logits(), 0.1) is None


def test_one_logit_of_one_token_is_seen() -> None:
    wrong = logits()
    wrong[40, 300] += 1.0
    fault = run.compare(wrong, logits(), 0.1)
    assert fault is not None
    assert "one logit" in fault
