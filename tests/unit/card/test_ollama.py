"""Modelfiles: chat templates in Go's syntax give the same text; others are left out."""

from __future__ import annotations

from typing import Any

import pytest

from quantmill.card import ollama

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OWN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}"
    "{{ c }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '[SYS]' + m['content'] + '[/SYS]' }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
LAST_ONLY = "{% for m in messages %}{% if loop.last %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
NUMBERED = "{% for m in messages %}{{ loop.index }}{{ m['content'] }}<|end|>{% endfor %}"

TALK = [
    ("system", "S"),
    ("user", "u1"),
    ("assistant", "a1"),
    ("user", "u2"),
    ("assistant", "a2"),
    ("user", "u3"),
]


@pytest.mark.parametrize(
    ("template", "tokenizer", "stop"),
    [
        (CHATML, "gpt2", "<|im_end|>"),
        (OWN_SYSTEM + CHATML, "gpt2", "<|im_end|>"),
        (LLAMA3, "gpt2", "<|eot_id|>"),
        (MISTRAL, "llama", "</s>"),
    ],
)
def test_a_conversation_comes_out_as_by_the_models_own_template(
    template: str, tokenizer: str, stop: str
) -> None:
    from jinja2 import Environment

    form = ollama.chat(template, tokenizer)
    assert form is not None
    expected = (
        Environment()
        .from_string(template)
        .render(
            messages=[{"role": role, "content": text} for role, text in TALK],
            add_generation_prompt=True,
            bos_token="",
            eos_token="</s>",
        )
    )
    assert form.apply(TALK) == expected
    assert form.stop == stop


def test_the_go_template_says_what_apply_does() -> None:
    form = ollama.chat(OWN_SYSTEM + CHATML)
    assert form is not None
    assert form.template == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n"
        "{{ else }}<|im_start|>user\n{{ end }}{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"
        "{{ .Response }}<|im_end|>\n"
    )
    assert form.system == "Be kind."


@pytest.mark.parametrize(
    "template",
    [
        None,
        "",
        NO_SYSTEM,
        LAST_ONLY,
        NUMBERED,
        MISTRAL,
        "{{ broken",
        "{{ messages }}",
        "{{ 1 / 0 }}",
        CHATML + '{# a doc: {{ \'"""\' }} #}',
    ],
)
def test_what_ollamas_form_cannot_say_is_left_out(template: str | None) -> None:
    assert ollama.chat(template, "gpt2") is None


def facts(template: str | None) -> dict[str, Any]:
    return {"chat_template": template, "tokenizer": "gpt2"}


def test_a_modelfile_whole() -> None:
    assert ollama.modelfile("x.gguf", 2048, facts(OWN_SYSTEM + CHATML)).splitlines() == [
        "FROM ../x.gguf",
        "PARAMETER num_ctx 2048",
        'TEMPLATE """{{ if .System }}<|im_start|>system',
        "{{ .System }}<|im_end|>",
        "<|im_start|>user",
        "{{ else }}<|im_start|>user",
        "{{ end }}{{ .Prompt }}<|im_end|>",
        "<|im_start|>assistant",
        "{{ .Response }}<|im_end|>",
        '"""',
        'PARAMETER stop "<|im_end|>"',
        'SYSTEM """Be kind."""',
    ]


def test_a_model_without_a_template_and_one_that_cannot_be_said() -> None:
    assert "no chat template: it continues the text" in ollama.modelfile("x.gguf", 9, facts(None))
    content = ollama.modelfile("x.gguf", 9, facts(LAST_ONLY))
    assert "# No TEMPLATE" in content and 'TEMPLATE "' not in content


def test_recommended_sampling_is_in_the_modelfile() -> None:
    sampling = {"temp": 0.7, "top_k": 20, "penalty_repeat": 1.1, "penalty_last_n": 64, "sequence": "kp"}
    lines = ollama.modelfile("x.gguf", 9, facts(None), sampling).splitlines()
    assert lines[1:6] == [
        "PARAMETER num_ctx 9",
        "PARAMETER temperature 0.7",
        "PARAMETER top_k 20",
        "PARAMETER repeat_penalty 1.1",
        "PARAMETER repeat_last_n 64",
    ]
