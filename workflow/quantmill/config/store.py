"""The section `store` of config.yaml."""

from __future__ import annotations

from pydantic import Field

from quantmill.config.fields import Count, FilePath, Size, Strict, size_bytes


class Store(Strict):
    """The store of finished units of work."""

    path: FilePath | None = Field(default=None, description="its folder; default: .store in the results")
    max: Size | Count = Field(
        default="50 GiB",
        description="above it the least recently used units go; what is in the results' files does not count",
    )

    read: list[FilePath] = Field(
        default=[], description="other stores, whose units are used and in which nothing is written"
    )

    @property
    def max_bytes(self) -> int:
        """The size cap in bytes."""
        return self.max if isinstance(self.max, int) else size_bytes(self.max)
