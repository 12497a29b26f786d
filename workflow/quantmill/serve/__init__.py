"""A file as people use it: behind a server that speaks OpenAI's protocol."""
