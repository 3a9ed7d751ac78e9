"""Measurements as objects for notebooks: tables, plots, and what a cell shows; each is still the plain table it was."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from robustkt import certlog
from robustkt.certlog import Row
from robustkt.errors import RobustKTError
from robustkt.generation import Generation
from robustkt.registry import Registry, Result
from robustkt.registry.measurements import Table, table

if TYPE_CHECKING:
    import pandas

    from robustkt.report import Figure

STYLE = "text-align:left;padding:.1em .9em .1em 0"


class Measured(dict[str, Any]):
    """A stored measurement: the table of its settings and figures, with the rows of its log."""

    def __init__(self, registry: Registry, generation: Generation, result: Result) -> None:
        super().__init__(
            generation=generation.name,
            id=generation.id,
            key=result.key,
            claimed=result.claimed,
            settings=dict(result.content["settings"]),
            figures=dict(result.content["figures"]),
        )
        self.generation = generation
        self._log = registry.log(result)

    def _shown(self, rows: list[tuple[str, str]], what: str) -> str:
        cells = "".join(
            f'<tr><th scope="row" style="{STYLE}">{escape(name)}</th><td style="{STYLE}">{escape(value)}</td></tr>'
            for name, value in rows
        )
        claim = f"<p>Claimed by {escape(str(self['claimed']))}; not measured here.</p>" if self["claimed"] else ""
        return f"<table><caption>{escape(what)}</caption>{cells}</table>{claim}"


class CertificateSet(Measured):
    """Certificates of one generation on a set of images."""

    @property
    def rows(self) -> list[Row]:
        """A row an image."""
        return certlog.parse(self._log.decode())

    def to_pandas(self) -> pandas.DataFrame:
        """A row an image: idx, label, predict (−1: abstained), radius, correct, successes, trials, p_low, drawn.

        Raises:
            RobustKTError: pandas is not there.
        """
        names = ("idx", "label", "predict", "radius", "correct", "successes", "trials", "p_low", "drawn")
        rows = self.rows
        return _frame({name: [getattr(row, name) for row in rows] for name in names})

    def plot(self) -> Figure:
        """Certified accuracy against the radius, as a chart that a notebook shows."""
        from robustkt.report import certified_figure

        norm = str(self["settings"]["norm"])
        title = f"{self.generation.name}: certified accuracy in {norm}"
        return certified_figure({self.generation.name: self.rows}, norm=norm, title=title)

    def _repr_html_(self) -> str:
        s, f = self["settings"], self["figures"]
        told = [(f"certified at {r}", f"{value:.1%}") for r, value in f["certified_accuracy"].items()]
        more = [("average certified radius", f"{f['acr']:.4f}"), ("abstained", f"{f['abstain_rate']:.1%}")]
        noise = f"σ = {s['sigma']}, " if s["sigma"] else ""
        what = f"Certificates of {self.generation.name}: {noise}{s['norm']}, {s['mode']}, n = {s['n']:,}"
        doubt = f"each wrong with probability at most α = {s['alpha']:g}"
        return self._shown([*told, *more], f"{what}, {f['images']:,} images; {doubt}")


class Evaluation(Measured):
    """Accuracy of one generation under attacks."""

    @property
    def columns(self) -> Table:
        """By name `idx`, `label`, and for each attack 1 where the image stayed right."""
        return table(self._log)

    def to_pandas(self) -> pandas.DataFrame:
        """A row an image: idx, label, and a column an attack, true where the image stayed right.

        Raises:
            RobustKTError: pandas is not there.
        """
        columns = {name: list(values) for name, values in self.columns.items() if "|" not in name}
        return _frame({k: v if k in ("idx", "label") else [bool(x) for x in v] for k, v in columns.items()})

    def plot(self) -> Figure:
        """Accuracy under each attack with its 95 % interval, as a chart that a notebook shows."""
        from robustkt.report.attacks import attacked_figure

        columns = {name: values for name, values in self.columns.items() if name in self["figures"]["attacks"]}
        s = self["settings"]
        title = f"{self.generation.name}: accuracy under attack, {s['norm']} eps = {s['eps']}"
        return attacked_figure({self.generation.name: columns}, title=title)

    def _repr_html_(self) -> str:
        s = self["settings"]
        told = [
            (name, f"{one['accuracy']:.1%} ({one['interval'][0]:.1%} – {one['interval'][1]:.1%})")
            for name, one in self["figures"]["attacks"].items()
        ]
        what = f"{self.generation.name} under attack: {s['norm']} eps = {s['eps']}, {s['images']:,} images"
        return self._shown(told, f"{what}; measured, not proven")


def certificates(generation: str = "@latest", *, registry: Registry | None = None) -> list[CertificateSet]:
    """The stored certificates of a generation, in the mode that is meant.

    Raises:
        RobustKTError: no such generation, or a damaged log.
    """
    return [CertificateSet(*one) for one in _stored(generation, registry, "certificate")]


def evaluations(generation: str = "@latest", *, registry: Registry | None = None) -> list[Evaluation]:
    """The stored evaluations of a generation in the mode that is meant.

    Raises:
        RobustKTError: no such generation, or a damaged log.
    """
    return [Evaluation(*one) for one in _stored(generation, registry, "evaluation")]


def _stored(generation: str, registry: Registry | None, kind: str) -> Iterator[tuple[Registry, Generation, Result]]:
    registry = registry or Registry.locate()
    found = registry.mode(generation)
    networks = found.network(), found.network(last=True)
    for result in registry.results(found.id, kind):
        if result.content["settings"]["weights"] in networks:
            yield registry, found, result


def _frame(columns: dict[str, list[Any]]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise RobustKTError("a table needs pandas, which is not here", "pip install pandas") from None
    return pandas.DataFrame(columns)
