"""Means and distributions, as reports have them."""

from typing import Annotated, TypedDict


class Mean(TypedDict):
    """A mean with its standard error."""

    mean: float
    error: float


Distribution = TypedDict(
    "Distribution",
    {
        "mean": float,
        "error": Annotated[float, "standard error of the mean"],
        "min": float,
        "0.1%": float,
        "1%": float,
        "5%": float,
        "10%": float,
        "25%": float,
        "median": float,
        "75%": float,
        "90%": float,
        "95%": float,
        "99%": float,
        "99.9%": float,
        "max": float,
    },
)
"""A distribution over the predictions."""
