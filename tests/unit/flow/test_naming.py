"""What is said of names before a run."""

from __future__ import annotations

from collections.abc import Callable

from quantmill.flow import naming
from quantmill.flow.project import Project


def test_names_of_published_files_alone(make: Callable[..., Project]) -> None:
    project = make(("recipes.3.name", "fit-1.5MiB"), ("recipes.3.size", "1.5 MiB"))
    assert [line.split(": ")[1] for line in naming.remarks(project)] == [
        *("local-plain.gguf", "local-ranked.gguf", "local-lines.gguf", "local-fit-1.5MiB.gguf"),
        "local-of-memory.gguf",
    ]
    plain, *_, sized, memory = naming.remarks(project)
    assert plain.endswith("call the recipe such as plain-Q8_0")
    assert sized.endswith("call the recipe such as fit-1.5MiB-Q4_K_M")  # of 2.6 million weights
    assert memory.endswith("call the recipe such as of-memory-Q8_0")
    assert naming.remarks(make(("publish", {}))) == []


def test_a_budget_of_bits(make: Callable[..., Project]) -> None:
    project = make(("models.imported.publish", {"repo": "me/imported"}))
    assert naming.remarks(project)[-1].endswith("call the recipe such as imported-fit-Q5_K_M")
