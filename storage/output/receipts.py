"""The receipt of a file, or of several: lines and cost by lane, and what all would have cost at list price."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from llmdo.storage.output.costs import UNPAID, Cost, LaneCost

AT_LIST, IN_BATCHS_PLACE = "list", "rescued"  # beside the lanes
_DECIMALS = 12


class LaneLines(BaseModel):
    """Answers of one lane whose cost is known; in US dollars."""

    model_config = ConfigDict(frozen=True)

    lines: int
    cost_usd: float
    list_usd: float


class FileReceipt(BaseModel):
    """What answers cost by lane: batch, flex …, AT_LIST, IN_BATCHS_PLACE, UNPAID; in US dollars.

    ``saved_usd`` is negative where rescued answers cost more than list price, as in a dearer lane. ``rescue_usd``: what
    rescued ones cost beyond a batch.
    """

    model_config = ConfigDict(frozen=True)

    lanes: Mapping[str, LaneLines]
    cost_usd: float
    list_usd: float
    saved_usd: float
    rescue_usd: float

    @property
    def lane_costs(self) -> tuple[LaneCost, ...]:
        """As a sum of costs has them: without those at list price."""
        return tuple(
            LaneCost(lane, one.lines, one.cost_usd, one.list_usd, self.rescue_usd if lane == IN_BATCHS_PLACE else 0.0)
            for lane, one in self.lanes.items()
            if lane != AT_LIST
        )


def receipt_of(cost: Cost, answered: int) -> FileReceipt | None:
    """What a number of answers cost, by lane; None if all of them were paid at list price from the start."""
    if all(one.lane == UNPAID for one in cost.lanes):
        return None
    lanes = {one.lane: LaneLines(lines=one.lines, cost_usd=one.usd, list_usd=one.list_usd) for one in cost.lanes}
    usual = answered - cost.unpriced - sum(one.lines for one in cost.lanes)
    usd = _rounded((cost.usd or 0.0) - sum(one.usd for one in cost.lanes))
    if usual > 0:
        lanes[AT_LIST] = LaneLines(lines=usual, cost_usd=usd, list_usd=usd)
    paid, at_list = (_rounded(sum(getattr(one, name) for one in lanes.values())) for name in ("cost_usd", "list_usd"))
    return FileReceipt(
        lanes=dict(sorted(lanes.items())),
        cost_usd=paid,
        list_usd=at_list,
        saved_usd=_rounded(at_list - paid),
        rescue_usd=_rounded(sum(one.rescue_usd for one in cost.lanes)),
    )


def row_lanes(row: Mapping[str, Any], usage: Mapping[str, Any]) -> tuple[LaneCost, ...]:
    """An answer's row as its shard's sum counts it. Rows of earlier versions do not say what list price would be."""
    if row.get("shared") or (row.get("details") or {}).get("cache_status") == "HIT":
        return (LaneCost(UNPAID, 1),)
    usd, rescue = usage.get("cost_usd"), usage.get("rescue_usd")
    lane = row.get("lane") if rescue is None else IN_BATCHS_PLACE
    if usd is None or not lane:
        return ()
    return (LaneCost(str(lane), 1, usd, usage.get("list_usd", usd), rescue or 0.0),)


def lanes_text(lanes: tuple[LaneCost, ...]) -> str:
    """For the metadata of a shard: short, in ASCII."""
    rows = [[one.lane, one.lines, one.usd, one.list_usd, one.rescue_usd] for one in lanes]
    return json.dumps(rows, separators=(",", ":"))


def read_lanes(text: str) -> tuple[LaneCost, ...]:
    """Raises ValueError or TypeError for what ``lanes_text`` has not written."""
    return tuple(
        LaneCost(str(lane), int(lines), float(usd), float(at_list), float(rescue))
        for lane, lines, usd, at_list, rescue in json.loads(text)
    )


def _rounded(usd: float) -> float:
    return round(usd, _DECIMALS) + 0.0  # + 0.0: no -0.0
