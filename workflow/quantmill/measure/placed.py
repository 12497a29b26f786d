"""Where the units of a stage were computed: noted in the store beside them, for a report of units reused."""

from __future__ import annotations

import json

from quantmill.formats.devices import Placement
from quantmill.store import Identity, Store


def note(store: Store, stage: str, identity: Identity, placement: Placement | None) -> None:
    """Note where a stage now computes what that identity determines; nothing where all is on the CPU, unless
    it was elsewhere before.
    """
    known = noted(store, stage, identity)
    here: Placement = placement or {"layers": 0, "of": known[0]["of"] if known else 0, "devices": []}
    if here not in known and (placement or known):
        store.put(_key(stage, identity), json.dumps([*known, here]).encode())


def noted(store: Store, stage: str, identity: Identity) -> list[Placement]:
    """Where a stage's units were computed; empty where all of it was on the CPU."""
    stored = store.get(_key(stage, identity))
    places: list[Placement] = [] if stored is None else json.loads(bytes(stored))
    return places


def _key(stage: str, identity: Identity) -> str:
    return Store.key("placement", 1, stage=stage, **identity)
