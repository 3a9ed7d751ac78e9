"""A figure: what is drawn, what it says in words, and the numbers behind it; as Vega-Lite, and rendered from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from robustkt.report.style import config

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is loaded from there
PICTURES = ("svg", "pdf", "png")
SCALE = 2  # pixels of a PNG for each of the figure's

OWN = {
    "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__", "__proto__", "constructor",
    "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf",
}  # fmt: skip
# what every object of JavaScript has: where Vega 6 finds such a text in a list, it takes it for that, and draws nothing
UNSEEN = "\u2060"  # a word joiner, which has no width

Spec = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One chart, or the table that stands where there is none."""

    name: str  # of its file: certified-l2
    title: str
    alt: str  # what it shows, for those who do not see it
    spec: Mapping[str, Any]  # Vega-Lite without a configuration
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # the numbers behind it, as text
    notes: Sequence[str] = ()
    sources: Sequence[int] = field(default=())  # numbers of the list of sources

    def told(self, *notes: str) -> Figure:
        """The same with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    @property
    def drawn(self) -> Spec:
        """The specification as Vega draws it, whatever its texts are."""
        drawn: Spec = _disarmed(dict(self.spec))
        return drawn

    def whole(self, width: int = 480, *, titled: bool = False) -> Spec:
        """A specification that stands alone, `width` pixels wide, as it is printed."""
        title = {"title": self.title} if titled else {}
        return {"$schema": SCHEMA, **self.drawn, **title, "width": width, "config": config()}

    def render(self, form: str, *, titled: bool = False) -> bytes:
        """The figure as SVG, PDF or PNG; the same one gives the same SVG and PNG on one machine, byte for byte."""
        import vl_convert

        spec, nowhere = self.whole(titled=titled), list[str]()  # nothing may be fetched
        if form == "svg":
            return vl_convert.vegalite_to_svg(spec, allowed_base_urls=nowhere).encode()
        if form == "pdf":
            return vl_convert.vegalite_to_pdf(spec, allowed_base_urls=nowhere)
        return vl_convert.vegalite_to_png(spec, scale=SCALE, allowed_base_urls=nowhere)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What a notebook shows: the interactive chart, or its picture where it draws none."""
        return {
            "application/vnd.vegalite.v6+json": self.whole(),
            "image/svg+xml": self.render("svg").decode(),
            "text/plain": f"{self.title}: {self.alt}",
        }


def _disarmed(spec: Any) -> Any:
    if isinstance(spec, dict):
        return {key: _disarmed(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_disarmed(part) for part in spec]
    return spec + UNSEEN if isinstance(spec, str) and spec in OWN else spec


def axis(name: str, title: str, **more: Any) -> Spec:
    """A quantitative channel."""
    return {"field": name, "type": "quantitative", "title": title, **more}


def share(name: str, title: str, **more: Any) -> Spec:
    """A quantitative channel from 0 to 1, told in per cent."""
    scale = {"domain": [0, 1], "nice": False}
    return axis(name, title, scale=scale, axis={"format": ".0%", "tickCount": 5}, **more)


def series(names: Sequence[str], channel: str, scale: Mapping[str, Any] | None = None) -> dict[str, Spec]:
    """A channel that tells the series apart, in the order of `names`, with one legend for all of them."""
    legend = None if len(names) < 2 else {"title": None, "symbolOpacity": 1, "values": list(names)}
    return {
        channel: {
            "field": "series", "type": "nominal", "title": None, "legend": legend,
            "scale": {"domain": list(names), **(scale or {})}, "sort": None,
        }
    }  # fmt: skip


def in_order(spec: Any, names: Sequence[str]) -> Any:
    """The specification with the series in the order of `names`, so that one has one colour in every figure."""
    if isinstance(spec, list):
        return [in_order(part, names) for part in spec]
    if not isinstance(spec, dict):
        return spec
    if spec.get("field") == "series" and set(spec.get("scale", {}).get("domain", ())) <= {*names}:
        return {
            **spec,
            **({"scale": {**spec["scale"], "domain": list(names)}} if "domain" in spec.get("scale", {}) else {}),
        }
    return {key: value if key == "data" else in_order(value, names) for key, value in spec.items()}


def tips(**told: str) -> list[Spec]:
    """What hovering shows: field -> title."""
    return [{"field": name, "type": "nominal", "title": title.replace("_", " ")} for name, title in told.items()]


def hovered(fields: Sequence[str]) -> Spec:
    """A selection of the point under the pointer."""
    select = {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": [*fields]}
    return {"name": "near", "select": select}


def percent(value: float | None) -> str:
    """A share as `93.4 %`, or a dash."""
    return "–" if value is None else f"{round(value, 9) + 0.0:.1%}".replace("%", " %")


def between(interval: Sequence[float]) -> str:
    """An interval of shares: `90.1 – 95.2 %`."""
    low, high = interval
    return f"{100 * low:.1f} – {100 * high:.1f} %"
