"""The part of Grafana's dashboard JSON that ours use, strictly.

Source: Grafana's dashboard kind, schema version 41 (grafana/kinds/dashboard). Why not grafana-foundation-sdk:
docs/reference/grafana.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

WIDTH = 24
Colour = Literal["green", "red", "orange", "blue", "text"]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class GridPos(_Strict):
    """Where a panel is; the grid is 24 wide."""

    x: Annotated[int, Field(ge=0, lt=WIDTH)]
    y: Annotated[int, Field(ge=0)]
    w: Annotated[int, Field(ge=1, le=WIDTH)]
    h: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _within_the_grid(self) -> Self:
        if self.x + self.w > WIDTH:
            raise ValueError(f"a panel at {self.x} of width {self.w} leaves the grid")
        return self


class Datasource(_Strict):
    """One of those that are provisioned."""

    type: Literal["prometheus", "loki"]
    uid: Literal["prometheus", "loki"]


class Target(_Strict):
    """A query."""

    refId: Annotated[str, Field(pattern=r"^[A-Z]$")]  # noqa: N815 - Grafana's name
    datasource: Datasource
    expr: Annotated[str, Field(min_length=1)]
    legendFormat: str = ""  # noqa: N815
    instant: bool = False
    range: bool = True
    queryType: Literal["range", "instant"] | None = None  # noqa: N815


class Step(_Strict):
    """From this value on, this colour; None is the beginning."""

    value: float | None
    color: Colour


class Thresholds(_Strict):
    """Steps in rising order."""

    mode: Literal["absolute"] = "absolute"
    steps: Annotated[list[Step], Field(min_length=1)]

    @model_validator(mode="after")
    def _rise(self) -> Self:
        values = [step.value for step in self.steps]
        rest = [value for value in values[1:] if value is not None]
        if values[0] is not None or len(rest) != len(values) - 1 or rest != sorted(rest):
            raise ValueError(f"steps must begin with null and rise: {values}")
        return self


class Defaults(_Strict):
    """How values look."""

    unit: str
    thresholds: Thresholds
    mappings: list[dict[str, Any]] = []
    custom: dict[str, Any] = {}
    noValue: str = "no data"  # noqa: N815


class FieldConfig(_Strict):
    """The same for all fields of a panel."""

    defaults: Defaults
    overrides: list[Any] = []


class Panel(_Strict):
    """A row, or something in it."""

    id: Annotated[int, Field(ge=1)]
    type: Literal["row", "stat", "timeseries", "text", "logs"]
    title: str
    description: str = ""
    gridPos: GridPos  # noqa: N815
    datasource: Datasource | None = None
    targets: list[Target] = []
    fieldConfig: FieldConfig | None = None  # noqa: N815
    options: dict[str, Any] = {}
    collapsed: bool | None = None
    panels: list[Any] | None = None

    @model_validator(mode="after")
    def _says_what_its_kind_needs(self) -> Self:
        asks = self.type in ("stat", "timeseries", "logs")
        if asks != bool(self.targets) or asks != bool(self.datasource):
            raise ValueError(f"{self.type} panel {self.title!r}: targets and datasource are for panels that ask")
        return self


class Time(_Strict):
    """What is shown at first."""

    from_: str = Field(alias="from")
    to: str


class Dashboard(_Strict):
    """A whole one."""

    uid: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]
    title: str
    description: str
    tags: list[str]
    schemaVersion: Literal[41]  # noqa: N815
    version: int
    editable: Literal[False]
    graphTooltip: Literal[0, 1, 2]  # noqa: N815
    refresh: str
    timezone: Literal["utc", "browser"]
    time: Time
    templating: dict[Literal["list"], list[dict[str, Any]]]
    annotations: dict[Literal["list"], list[dict[str, Any]]]
    links: list[dict[str, Any]]
    panels: Annotated[list[Panel], Field(min_length=1)]

    @model_validator(mode="after")
    def _panels_are_apart(self) -> Self:
        ids = [panel.id for panel in self.panels]
        if len(set(ids)) != len(ids):
            raise ValueError("two panels have the same id")
        cells = set()
        for panel in self.panels:
            spot = panel.gridPos
            for x in range(spot.x, spot.x + spot.w):
                for y in range(spot.y, spot.y + spot.h):
                    if (x, y) in cells:
                        raise ValueError(f"panel {panel.title!r} lies on another")
                    cells.add((x, y))
        return self
