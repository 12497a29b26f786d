"""Problems to write code for, in the form of OpenAI's human-eval: one JSON object a line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

from quantmill.errors import QuantmillError
from quantmill.files import decode_user_text, split_lines


@dataclass(frozen=True)
class Problem:
    """One problem: a function's head and docstring, its tests (`check(candidate)`), a solution's body."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    def program(self, code: str) -> str:
        """The program that passes if the function `entry_point`, which `code` defines, does."""
        return f"{code}\n{self.test}\ncheck({self.entry_point})\n"

    @property
    def solution(self) -> str:
        """The function, as its authors wrote it."""
        return self.prompt + self.canonical_solution

    @property
    def preamble(self) -> str:
        """What stands before the function: imports, and functions that it may call."""
        heads = list(re.finditer(rf"^def {self.entry_point}\(", self.prompt, re.MULTILINE))
        return self.prompt[: heads[-1].start()] if heads else ""


def read(path: Path, limit: int | None = None) -> list[Problem]:
    """The first `limit` problems of a JSONL file, gzipped or not; a bad one is a QuantmillError."""
    required = [field.name for field in fields(Problem)]
    problems: dict[str, Problem] = {}
    try:
        data = path.read_bytes()
        text = decode_user_text(gzip.decompress(data) if path.suffix == ".gz" else data, path)
    except FileNotFoundError:
        raise QuantmillError("no such file", path, "check the path") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise QuantmillError(f"cannot be read ({error})", path, "give JSON lines, or those gzipped") from None
    for number, line in enumerate(split_lines(text), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise QuantmillError(f"no JSON ({error})", where, "put it right") from None
        for field in required:
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                cure = f"a problem has {', '.join(required)}, all of them text"
                raise QuantmillError(f"no field {field}", where, cure)
        if not row["entry_point"].isidentifier():
            raise QuantmillError(f"entry_point is {row['entry_point']!r}", where, "give the function's name")
        if row["task_id"] in problems:
            raise QuantmillError(f"{row['task_id']} is there twice", where, "remove one")
        problems[row["task_id"]] = Problem(**{field: row[field] for field in required})
    if not problems:
        raise QuantmillError("holds no problems", path)
    return list(problems.values())[:limit]
