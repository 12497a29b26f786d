"""What a model can do: code that is run, tasks of others; beside what `measure` says of its predictions."""
