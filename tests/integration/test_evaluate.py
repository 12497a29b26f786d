"""Evaluations of a tiny model: generation, HumanEval, likelihoods, and lm-eval where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkout import ROOT
from quantmill.engine.generate import Answer, Generator, Tokens
from quantmill.engine.mainline import Evaluator
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError
from quantmill.evaluate import humaneval, sandbox
from quantmill.evaluate.likelihood import Likelihoods, Request, windows
from quantmill.evaluate.problems import read
from quantmill.evaluate.prompting import Prompter
from quantmill.evaluate.tasks import Engine, chance, evaluate, rows
from quantmill.files import read_json, write_json
from quantmill.measure.score import nll, predictions, with_bos
from quantmill.progress import Log
from quantmill.store import Store

DATA = ROOT / "tests" / "data"
MODEL, MOE = DATA / "tiny-llama.gguf", DATA / "tiny-moe.gguf"
PROBLEMS = DATA / "problems.jsonl"
IDENTITY = {"engine": "e", "model": "m"}


def tokens(count: int, start: int = 0) -> Tokens:
    with Vocabulary(MODEL) as vocabulary:
        return vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))[start : start + count]


def answers(
    prompts: list[Tokens],
    *,
    parallel: int = 3,
    threads: int = 1,
    context: int = 256,
    most: int = 24,
    stops: tuple[str, ...] = (),
    model: Path = MODEL,
) -> dict[int, Answer]:
    with Generator(model, context=context, parallel=parallel, threads=threads) as generator:
        return {answer.number: answer for answer in generator.answers(prompts, most, stops)}


def test_generation_is_greedy() -> None:
    prompt = tokens(9)
    answer = answers([prompt])[0]
    with Evaluator(MODEL, context=64, batch=64, threads=1) as model:
        for number, token in enumerate(answer.tokens[:8]):
            model.clear()
            model.decode(np.concatenate([prompt, answer.tokens[:number]]).astype(np.int32), 0)
            assert model.logits(len(prompt) + number)[-1].argmax() == token
    with Vocabulary(MODEL) as vocabulary:
        written = vocabulary.tokenize(answer.text)
    assert len(answer.tokens) == 24 and not answer.ended
    assert answer.seconds > 0 and answer.prompt_seconds > 0 and len(written) > 0


@pytest.mark.parametrize("model", [MODEL, MOE], ids=["dense", "moe"])
def test_an_answer_does_not_depend_on_what_runs_beside_it(model: Path) -> None:
    prompts = [tokens(7 + 5 * number, 20 * number) for number in range(7)]
    whole = answers(prompts, model=model)
    turned = answers(prompts[::-1], model=model)
    alone = answers(prompts[4:5], model=model, threads=2, context=512)
    assert [whole[n].tokens for n in range(7)] == [turned[6 - n].tokens for n in range(7)]
    assert alone[0].tokens == whole[4].tokens


def test_a_stop_string_ends_an_answer_before_itself() -> None:
    whole = answers([tokens(9)])[0]
    stop = whole.text[10:14]
    result = answers([tokens(9)], stops=("never there", stop))[0]
    assert result.ended and result.text == whole.text[: whole.text.index(stop)]
    assert len(result.tokens) < len(whole.tokens)


def test_a_prompt_of_many_pieces_and_one_too_long() -> None:
    assert len(answers([tokens(1100)], context=1200, most=2)[0].tokens) == 2
    with pytest.raises(ValueError, match="300 tokens in a context of 256"):
        answers([tokens(300)])


def config(**changes: Any) -> dict[str, Any]:
    return {
        "limit": None,
        "max_tokens": 24,
        "prompt": "chat",
        "instruction": "Write it.",
        "template": {},
        "stop": [],
        "parallel": 3,
        "seconds": 5.0,
        "memory": 1 << 30,
        "accept_unsandboxed": False,
    } | changes


def stage(
    folder: Path,
    settings: dict[str, Any],
    *,
    model: Path = MODEL,
    problems: Path = PROBLEMS,
    store: str = "store",
) -> subprocess.CompletedProcess[str]:
    facts = folder / "facts.json"
    write_json(facts, {"sha256": "m"})
    spec = json.dumps({"config": settings, "engine": "e"})
    files = ["--model", model, "--facts", facts, "--problems", problems, "--store", folder / store]
    outputs = ["--out", folder / "humaneval.json", "--samples", folder / "humaneval.jsonl"]
    command = [sys.executable, "-m", "quantmill.evaluate.humaneval", "--spec", spec, *files, *outputs]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def confined() -> None:
    try:
        sandbox.check(accept_unsandboxed=False)
    except QuantmillError as error:
        pytest.skip(str(error))


def test_humaneval_goes_on_where_it_stood(tmp_path: Path) -> None:
    confined()
    assert stage(tmp_path, config(limit=1)).stderr.splitlines()[-1].endswith("1 answers generated, 0 reused")
    done = stage(tmp_path, config())
    assert done.stderr.splitlines()[-1] == "pass@1 0 of 3; 2 answers generated, 1 reused"
    written, samples = (
        read_json(tmp_path / "humaneval.json"),
        (tmp_path / "humaneval.jsonl").read_text("utf-8"),
    )
    assert (written["problems"], written["passed"], written["pass_at_1"]) == (3, 0, 0.0)
    assert written["interval"] == pytest.approx([0, 0.5615], abs=1e-4)
    assert sum(written["failures"].values()) == 3 and written["audits"]["cut_off"] == 3
    assert written["generated_tokens"] == 72 and written["tokens_per_s"] > 0
    assert written["settings"]["file"] == "problems.jsonl" and written["settings"]["confined"] is True
    assert [json.loads(line)["task_id"] for line in samples.splitlines()] == ["own/0", "own/1", "own/2"]
    # in another store, all at once: the same answers
    stage(tmp_path, config(), store="other")
    assert (tmp_path / "humaneval.jsonl").read_text("utf-8") == samples


def test_what_is_said_of_answers(tmp_path: Path) -> None:
    confined()
    problems = read(PROBLEMS)
    texts = [
        f"```python\n{problems[0].solution}```",
        "def four(text):\n    return text\n",
        "The answer is the answer is the answer is",
    ]
    given = [
        Answer(number, text, [1, 2] * 20 if number == 2 else [1, 2, 3], number < 2, 0.5, 0.25)
        for number, text in enumerate(texts)
    ]
    result = humaneval.samples(
        problems, given, sandbox.Limits(), chat=True, confined=True, threads=2, log=Log()
    )
    written = humaneval.report(result, given, {}, "sha256")
    assert [row["result"] for row in result] == ["passed", "wrong", "syntax"]
    assert written["audits"] == {"empty": 0, "fenced": 1, "verbatim": 1, "cut_off": 1, "repetition": 1}
    assert written["failures"] == {"wrong": 1, "syntax": 1, "error": 0, "timeout": 0, "limits": 0}
    assert (written["passed"], written["generated_tokens"], written["tokens_per_s"]) == (1, 46, 30.67)
    assert (written["seconds"], written["prompt_seconds"]) == (1.5, 0.75)


def test_a_model_without_a_chat_template_is_refused_or_completes(tmp_path: Path) -> None:
    confined()
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(MODEL.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))
    done = stage(tmp_path, config(), model=bare)
    assert done.returncode == 1
    assert done.stderr == f"error: {bare}: has no chat template; set prompt: completion for it under bench\n"
    assert not (tmp_path / "store").exists() and not (tmp_path / "humaneval.json").exists()
    assert stage(tmp_path, config(prompt="completion", limit=1), model=bare).returncode == 0


def test_a_chat_and_a_completion_are_asked_so() -> None:
    with Vocabulary(MODEL) as vocabulary:
        chat = Prompter(MODEL, vocabulary, chat=True, variables={}).tokens("Hello")
        bare = Prompter(MODEL, vocabulary, chat=False, variables={}).tokens("Hello")
        shown = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        assert chat.tolist()[-len(vocabulary.tokenize(shown, parse_special=True)) :] == (
            vocabulary.tokenize(shown, parse_special=True).tolist()
        )
        assert bare.tolist()[-len(vocabulary.tokenize("Hello")) :] == vocabulary.tokenize("Hello").tolist()


def test_bad_problems_are_refused_before_work_starts(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"task_id": "a", "prompt": "def f():"}\n', encoding="utf-8")
    done = stage(tmp_path, config(), problems=broken)
    assert done.stderr.startswith(f"error: {broken}: line 1: no field entry_point; a problem has task_id, ")
    assert not (tmp_path / "store").exists()


def test_limits_that_no_solution_keeps_are_refused_before_work_starts(tmp_path: Path) -> None:
    confined()
    done = stage(tmp_path, config(memory=1 << 20))
    assert done.returncode == 1
    assert done.stderr.startswith("error: bench.humaneval: the limits are too tight for ")
    assert done.stderr.endswith("'s own solution (limits: MemoryError); raise seconds or memory\n")


def test_answers_beyond_the_models_context_are_refused(tmp_path: Path) -> None:
    done = stage(tmp_path, config(max_tokens=2040))
    assert done.stderr.startswith("error: bench.humaneval.max_tokens: ")
    assert "tokens of prompt and answer pass the model's context of 2048; lower it by " in done.stderr
    assert not (tmp_path / "store").exists()


def test_likelihoods_are_those_of_the_perplexity(tmp_path: Path) -> None:
    with Evaluator(MODEL, context=128, batch=128, threads=1) as model, ThreadPoolExecutor(1) as pool:
        chunk = with_bos(tokens(128), model.bos)
        with Log(tmp_path / "log").progress("perplexity", 1, "chunks") as progress:
            losses = [nll(logits, came, pool) for logits, came in predictions(model, chunk[None], progress)]
    request = Request(chunk[:65], chunk[65:])
    with Likelihoods(MODEL, context=128, threads=1, identity=IDENTITY, store=Store(tmp_path)) as likelihoods:
        value, greedy = likelihoods.one(request)
        assert value == pytest.approx(-float(np.concatenate(losses).sum()), rel=1e-4) and not greedy
        # whatever was asked before, the same prefix or another: the same value
        again = likelihoods.one(request)
        likelihoods.one(Request(chunk[:10], chunk[10:20]))
        assert again == likelihoods.one(request) == (value, greedy)


def test_what_greedy_decoding_gives_is_greedy_and_units_are_kept(tmp_path: Path) -> None:
    prompt = tokens(9)
    following = np.array(answers([prompt], parallel=1)[0].tokens[:6], np.int32)
    requests = [Request(prompt, following), Request(prompt, following[::-1].copy())]
    store = Store(tmp_path)
    with Log().progress("", 4, "") as progress:
        for _ in range(2):
            with Likelihoods(MODEL, context=64, threads=1, identity=IDENTITY, store=store) as likelihoods:
                result = list(likelihoods.of(requests, progress))
            assert [greedy for _, greedy in result] == [True, False] and result[0][0] > result[1][0]
    assert (store.made, store.reused) == (1, 1)


def test_long_requests_keep_their_end_and_windows_ask_for_each_token_once() -> None:
    whole = tokens(100)
    stored = Request(whole[:90], whole[90:]).within(30)
    assert np.array_equal(stored.context, whole[69:90]) and np.array_equal(stored.continuation, whole[90:])
    parts = list(windows(whole, whole[:1], 32))
    assert np.array_equal(np.concatenate([part.continuation for part in parts]), whole)
    assert all(len(part.context) + len(part.continuation) - 1 <= 32 for part in parts)
    assert (len(parts[-1].context), len(parts[-1].continuation)) == (29, 4)


def engine(folder: Path, vocabulary: Vocabulary, likelihoods: Likelihoods, *, chat: bool = False) -> Engine:
    return Engine(
        MODEL,
        vocabulary,
        likelihoods,
        chat=chat,
        threads=1,
        identity=IDENTITY,
        store=Store(folder),
        log=Log(),
    )


def test_the_engine_answers_in_texts(tmp_path: Path) -> None:
    with (
        Vocabulary(MODEL) as vocabulary,
        Likelihoods(MODEL, context=128, threads=1, identity=IDENTITY, store=Store(tmp_path)) as likelihoods,
    ):
        requested = engine(tmp_path, vocabulary, likelihoods)
        first, second, empty = requested.loglikelihood(
            [("The sky is ", "blue"), ("The sky is", " blue"), ("", "a")]
        )
        assert first == second and empty[0] < 0
        long, short = requested.rolling(["the quick brown fox " * 60, "the quick brown fox"])
        assert long < short < 0
        limits = {"until": ["\n"], "max_gen_toks": 5}
        texts = requested.generate([("One", limits), ("Two", limits | {"max_gen_toks": 3}), ("One", limits)])
        assert texts[0] == texts[2] and "\n" not in texts[0]
        with pytest.raises(QuantmillError, match="a task samples its answers"):
            requested.generate([("One", {"do_sample": True})])


def test_rows_and_chance_of_lm_evals_results() -> None:
    result = {
        "results": {
            "t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 1, "sample_len": 2},
            "g": {"exact_match,strict": 0.25, "exact_match_stderr,strict": "N/A"},
        },
        "n-samples": {"t": {"original": 9, "effective": 2}, "g": {"original": 4, "effective": 4}},
        "configs": {"t": {"output_type": "multiple_choice"}, "g": {"output_type": "generate_until"}},
        "samples": {"t": [{"resps": [1, 2]}, {"resps": [1, 2, 3, 4]}], "g": [{"resps": [1]}]},
    }
    assert chance(result, "t") == pytest.approx(0.375) and chance(result, "g") is None
    assert [tuple(row.values()) for row in rows(result)] == [
        ("t", "acc", 0.5, 0.1, 2, 0.375),
        ("t", "acc_norm", 1.0, None, 2, 0.375),
        ("g", "exact_match (strict)", 0.25, None, 4, None),
    ]


def test_lm_eval_runs_a_local_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = {
        "names": ["everyday"],
        "include": str(ROOT / "examples" / "tasks"),
        "limit": 6,
        "shots": None,
        "chat": False,
        "context": 256,
    }
    with (
        Vocabulary(MODEL) as vocabulary,
        Likelihoods(MODEL, context=256, threads=1, identity=IDENTITY, store=Store(tmp_path)) as likelihoods,
    ):
        requested = engine(tmp_path, vocabulary, likelihoods)
        result = rows(evaluate(requested, settings))
        row = json.loads((ROOT / "examples" / "tasks" / "everyday.jsonl").read_text("utf-8").splitlines()[0])
        question = f"Question: {row['question']}\nAnswer:"
        values = [
            value for value, _ in requested.loglikelihood([(question, f" {c}") for c in row["choices"]])
        ]
        with pytest.raises(QuantmillError, match="no task everyday2; `lm-eval ls tasks` lists"):
            evaluate(requested, settings | {"names": ["everyday2"]})
        (tmp_path / "tasks").mkdir()
        text = (ROOT / "examples" / "tasks" / "everyday.yaml").read_text("utf-8")
        (tmp_path / "tasks" / "lost.yaml").write_text(text.replace("everyday", "lost"), encoding="utf-8")
        with pytest.raises(
            QuantmillError, match=r"^bench.tasks: lm-eval cannot run lost \(FileNotFoundError: "
        ):
            evaluate(requested, settings | {"names": ["lost"], "include": str(tmp_path / "tasks")})
    assert [(r["name"], r["metric"], r["samples"], r["chance"]) for r in result] == [
        ("everyday", "acc", 6, 0.25),
        ("everyday", "acc_norm", 6, 0.25),
    ]
    assert len(values) == 4 and all(0 <= r["value"] <= 1 and r["stderr"] is not None for r in result)
