"""What exit codes mean, and which of a program's last lines says why it ended."""

import signal

import pytest

from quantmill import signals


@pytest.mark.parametrize(
    ("code", "how", "cure"),
    [
        (3, "ended with code 3", "run it again"),
        (-9, "ended by SIGKILL", "give it more memory"),
        (137, "ended by SIGKILL", "give it more memory"),
        (-signal.SIGILL, "ended by SIGILL", "make -B env"),
        (-signal.SIGTERM, "ended by SIGTERM", "run it again"),
        (255, "ended with code 255", "run it again"),
    ],
)
def test_how(code: int, how: str, cure: str) -> None:
    assert signals.how(code) == how
    assert cure in signals.cure(code)


ASSERTION = "/build/x/ggml/src/ggml.c:81: GGML_ASSERT(start % 2 == 0) failed"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("", ""),
        ("\n \n", ""),
        ("loading\nno such model\n", "no such model"),
        (f"loading\n{ASSERTION}\n", "ggml.c:81: GGML_ASSERT(start % 2 == 0) failed"),
        (
            f"{ASSERTION}\n[New LWP 12]\n30\twait4.c: No such file\n#0  0x00 in wait4 ()\ndetached",
            "ggml.c:81: GGML_ASSERT(start % 2 == 0) failed",
        ),
        (
            f"{ASSERTION}\n/x/libggml.so(ggml_abort+0x139)[0x7fcb7e01c689]\n",
            "ggml.c:81: GGML_ASSERT(start % 2 == 0) failed",
        ),
        ("ggml-cuda.cu:90: CUDA error\n", "ggml-cuda.cu:90: CUDA error"),
        (
            "terminate called after throwing an instance of 'std::runtime_error'\n  what():  no tensor\n",
            "what():  no tensor",
        ),
        ("malloc failed\n/x/libc.so(+0x1)[0xabc]\n", "malloc failed"),
        ("/lib/x.py:3: UserWarning: old\nOSError: no disk", "OSError: no disk"),
        ("x" * 400, "x" * 297 + "..."),
    ],
)
def test_last_words(message: str, words: str) -> None:
    assert signals.last_words(message) == words
