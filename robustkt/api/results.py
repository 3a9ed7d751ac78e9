"""Measurements as objects for notebooks: tables, plots, and what a cell shows; each is still the plain table it was."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from robustkt import certlog
from robustkt.certlog import Row
from robustkt.errors import RobustKTError
from robustkt.generation import Generation
from robustkt.numbers import floored
from robustkt.registry import Registry
from robustkt.registry.measurements import Table, table

if TYPE_CHECKING:
    import pandas

    from robustkt.report import Figure

STYLE = "text-align:left;padding:.1em .9em .1em 0"


class Answer(dict[str, Any]):
    """What the api answers: the plain table it is, which JSON and `[]` know, with more for notebooks."""

    def _table(self, rows: Sequence[tuple[str, ...]], what: str) -> str:
        """Rows as HTML, the first cell of each its heading, under a caption."""
        lines = "".join(
            f'<tr><th scope="row" style="{STYLE}">{escape(name)}</th>'
            + "".join(f'<td style="{STYLE}">{escape(cell)}</td>' for cell in cells)
            + "</tr>"
            for name, *cells in rows
        )
        return f"<table><caption>{escape(what)}</caption>{lines}</table>"


class Measured(Answer):
    """A stored measurement: the table that was asked for, its settings and figures, and the rows of its log.

    Args:
        told: the table.
        generation: whose measurement it is.
        settings: what it was measured under.
        figures: what a cell shows of it; none where another machine keeps it.
        log: reads its log.
    """

    def __init__(
        self,
        told: Mapping[str, Any],
        generation: Generation,
        settings: Mapping[str, Any],
        figures: Mapping[str, Any],
        log: Callable[[], bytes],
    ) -> None:
        super().__init__(told)
        self.generation, self.settings, self.figures, self._read = generation, settings, figures, log

    @functools.cached_property
    def _log(self) -> bytes:
        return self._read()

    def _shown(self, rows: Sequence[tuple[str, ...]], what: str) -> str:
        claim = f"<p>Claimed by {escape(str(self['claimed']))}; not measured here.</p>" if self.get("claimed") else ""
        return self._table(rows, what) + claim


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

        norm = str(self.settings["norm"])
        title = f"{self.generation.name}: certified accuracy in {norm}"
        return certified_figure({self.generation.name: self.rows}, norm=norm, title=title)

    def _repr_html_(self) -> str:
        s, f = self.settings, self.figures
        if not f:
            return self._shown([], f"Certificates of {self.generation.name}: the first rank has them")
        told = [(f"certified at {r}", f"{value:.1%}") for r, value in f["certified_accuracy"].items()]
        more = [("average certified radius", floored(f["acr"], 4)), ("abstained", f"{f['abstain_rate']:.1%}")]
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

        columns = {name: values for name, values in self.columns.items() if name in self.figures["attacks"]}
        s = self.settings
        title = f"{self.generation.name}: accuracy under attack, {s['norm']} eps = {s['eps']}"
        return attacked_figure({self.generation.name: columns}, title=title)

    def _repr_html_(self) -> str:
        s = self.settings
        told = [(name, _told(one)) for name, one in self.figures["attacks"].items()]
        what = f"{self.generation.name} under attack: {s['norm']} eps = {s['eps']}, {s['images']:,} images"
        return self._shown(told, f"{what}; measured, not proven")


class CorruptedEvaluation(Answer):
    """Accuracy of one generation on corrupted images."""

    def to_pandas(self) -> pandas.DataFrame:
        """A row a corruption and severity: corruption, severity, accuracy, low, high (95 % intervals).

        The first row is of the images as they are: corruption `clean`, severity 0.

        Raises:
            RobustKTError: pandas is not there.
        """
        columns: dict[str, list[Any]] = {"corruption": ["clean"], "severity": [0]}
        measured = [self["clean"]]
        for name, of in self["corruptions"].items():
            for severity, one in of["severities"].items():
                columns["corruption"].append(name)
                columns["severity"].append(int(severity))
                measured.append(one)
        columns["accuracy"] = [one["accuracy"] for one in measured]
        columns["low"], columns["high"] = ([one["interval"][end] for one in measured] for end in (0, 1))
        return _frame(columns)

    def plot(self) -> Figure:
        """Accuracy under each corruption, severity by severity, with 95 % intervals."""
        from robustkt.report.attacks import corrupted_figure

        return corrupted_figure(self, title=self._title())

    def _title(self) -> str:
        ball = f", {self['norm']} eps = {self['eps']}" if self["norm"] else ""
        return f"{self['generation']}, corrupted: {', '.join(self['attacks'])}{ball}, {self['images']:,} images each"

    def _repr_html_(self) -> str:
        means = {"clean": self["clean"], **{name: of["mean"] for name, of in self["corruptions"].items()}}
        rows = [(name, _told(one)) for name, one in {**means, "mean of the corruptions": self["mean"]}.items()]
        return self._table(rows, f"{self._title()}; of each corruption the mean of its severities")


class GateVerdict(Answer):
    """Whether a generation may replace another, check by check."""

    def to_pandas(self) -> pandas.DataFrame:
        """A row a check: name, images, against, value, difference, bound, margin, p_value, status, passed, won, lost.

        Raises:
            RobustKTError: pandas is not there.
        """
        names = ("name", "images", "against", "value", "difference", "bound", "margin", "p_value", "status", "passed")
        return _frame({name: [row[name] for row in self["checks"]] for name in (*names, "won", "lost")})

    def plot(self) -> Figure:
        """The change of each figure, the largest loss that is not excluded, and the margin."""
        from robustkt.report.attacks import gated_figure

        return gated_figure(self, title=self._title())

    def _title(self) -> str:
        verdict = "passes" if self["passed"] else "does not pass"
        return f"{self['generation']} {verdict} against {self['against']}"

    def _repr_html_(self) -> str:
        rows = [
            (row["name"], f"{row['against']:.1%}", f"{row['value']:.1%}", f"{100 * row['difference']:+.1f}",
             f"{100 * row['bound']:+.1f}", f"{100 * row['margin']:g}", row["status"])
            for row in self["checks"]
        ]  # fmt: skip
        rows += [
            (f"{row['check']}, class {row['class']}", "", "", f"{100 * row['difference']:+.1f}", "",
             f"{100 * row['margin']:g}", "worse")
            for row in self["classes"]
            if not row["passed"]
        ]  # fmt: skip
        what = f"{self._title()}, at {100 * self['confidence']:g} % confidence"
        return self._table(rows, f"{what}; then and now, change, at worst and margin in points, status")


class Sweep(Answer):
    """The mixtures of a clean and a robust adapter, measured."""

    def to_pandas(self) -> pandas.DataFrame:
        """A row a mixture: beta, and of clean and robust accuracy the share, low and high (95 % intervals).

        Raises:
            RobustKTError: pandas is not there.
        """
        columns: dict[str, list[Any]] = {"beta": [point["beta"] for point in self["points"]]}
        for kind in ("clean", "robust"):
            if any(f"{kind}_accuracy" in point for point in self["points"]):
                columns[f"{kind}_accuracy"] = [point[f"{kind}_accuracy"] for point in self["points"]]
                for end, name in enumerate(("low", "high")):
                    columns[f"{kind}_{name}"] = [point[f"{kind}_interval"][end] for point in self["points"]]
        return _frame(columns)

    def plot(self) -> Figure:
        """Clean and robust accuracy over β, as a chart that a notebook shows."""
        from robustkt.report import soup_curve

        return soup_curve(self["points"], self._title())

    def _title(self) -> str:
        attacks = ", ".join(self["attacks"])
        images = f"{self['images']:,} {self['split']} images"
        return f"{self['generation']}: {attacks}, {self['norm']} eps = {self['eps']}, {images}"

    def _repr_html_(self) -> str:
        rows = [
            (
                f"β = {point['beta']:g}",
                *(
                    f"{kind} {_share(point[f'{kind}_accuracy'], point[f'{kind}_interval'])}"
                    for kind in ("clean", "robust")
                    if f"{kind}_accuracy" in point
                ),
            )
            for point in self["points"]
        ]
        return self._table(rows, self._title())


class SoupPick(Sweep):
    """The mixture that was chosen, the mixtures that it was chosen from, and what it does on test images."""

    def _title(self) -> str:
        return f"{self['generation']}: β = {self['beta']:g} by {self['chosen_by']}, on {self['chosen_on']}"

    def _repr_html_(self) -> str:
        test = self["test"]
        rows = [(name, _told(one)) for name, one in test["attacks"].items()]
        return super()._repr_html_() + self._table(rows, f"{self['mode']} on {test['images']:,} images of {test['of']}")


class Comparison(Answer):
    """Two generations side by side."""

    def to_pandas(self) -> pandas.DataFrame:
        """A row a figure: what, name, images, first, second, difference, low, high, won, lost, p_value, p_adjusted.

        Differences are second − first; low and high are the ends of their interval.

        Raises:
            RobustKTError: pandas is not there.
        """
        rows = [(c, row) for c in self["comparisons"] for row in c["figures"]]
        same = ("name", "first", "second", "difference", "won", "lost", "p_value", "p_adjusted")
        columns: dict[str, list[Any]] = {name: [row[name] for _, row in rows] for name in same}
        columns["what"], columns["images"] = [c["what"] for c, _ in rows], [c["images"] for c, _ in rows]
        columns["low"], columns["high"] = ([row["interval"][end] for _, row in rows] for end in (0, 1))
        order = ("what", "name", "images", *same[1:4], "low", "high", *same[4:])
        return _frame({name: columns[name] for name in order})

    def plot(self) -> Figure:
        """Each figure of both with its 95 % interval, as a chart that a notebook shows."""
        from robustkt.report.attacks import compared_figure

        return compared_figure(self)

    def _repr_html_(self) -> str:
        rows = [
            (
                row["name"] if c["kind"] == row["name"] else f"{row['name']}, {c['what']}",
                f"{row['first']:.1%}", f"{row['second']:.1%}",
                f"{100 * row['difference']:+.1f} ({100 * row['interval'][0]:+.1f} – {100 * row['interval'][1]:+.1f})",
            )
            for c in self["comparisons"]
            for row in c["figures"]
        ]  # fmt: skip
        level = f"{100 * self['confidence']:g} %"
        return self._table(rows, f"{self['first']} and {self['second']}; differences in points, {level} intervals")


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


def _stored(generation: str, registry: Registry | None, kind: str) -> Iterator[tuple[Any, ...]]:
    registry = registry or Registry.locate()
    found = registry.mode(generation)
    networks = found.network(), found.network(last=True)
    for result in registry.results(found.id, kind):
        if (settings := dict(result.content["settings"]))["weights"] in networks:
            figures = dict(result.content["figures"])
            told = {"generation": found.name, "id": found.id, "key": result.key, "claimed": result.claimed}
            log = functools.partial(bytes, registry.log(result))
            yield {**told, "settings": settings, "figures": figures}, found, settings, figures, log


def _told(one: Mapping[str, Any]) -> str:
    """A figure with `accuracy` and `interval`."""
    return _share(one["accuracy"], one["interval"])


def _share(value: float, interval: Sequence[float]) -> str:
    """`84.7% (80.6% – 88.1%)`."""
    return f"{value:.1%} ({interval[0]:.1%} – {interval[1]:.1%})"


def _frame(columns: dict[str, list[Any]]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise RobustKTError("a table needs pandas, which is not here", "pip install pandas") from None
    return pandas.DataFrame(columns)
