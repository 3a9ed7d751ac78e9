"""What an experiment's record has of a network, figure by figure, and the line under its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.written import again, record, span


class Found:
    """A record of an experiment, by name of the network; with `alike` only the seeds that all of those have.

    Or, with `beside`, the seeds of another. `of` is the list of the record that has what was measured.
    """

    def __init__(self, name: str, alike: Iterable[str] = (), beside: Found | None = None, of: str = "rows") -> None:
        self.whole = record(name)
        self.measured: list[dict[str, Any]] = self.whole[of]
        measured = [{row["seed"] for row in self.measured if row["name"] == one} for one in alike]
        there = [seeds for seeds in measured if seeds]
        alone = set.intersection(*there) if there else None
        self.seeds: set[int] | None = beside.seeds if beside else alone

    def _mine(self, row: dict[str, Any]) -> bool:
        return self.seeds is None or row["seed"] in self.seeds

    def rows(self, name: str, kind: str, **told: Any) -> list[dict[str, Any]]:
        """What was measured of a network, a row a seed."""
        asked = {"name": name, "kind": kind, **told}
        rows_ = filter(self._mine, self.measured)
        return [row for row in rows_ if all(row.get(key) == value for key, value in asked.items())]

    def networks(self, name: str) -> list[dict[str, Any]]:
        """What a network cost, a row a seed."""
        return [row for row in filter(self._mine, self.whole["networks"]) if row["name"] == name]

    def certificates(self, name: str, radius: str) -> dict[int, float]:
        """Certified accuracy at a radius in %, by seed."""
        return {row["seed"]: 100 * row["certified_accuracy"][radius] for row in self.rows(name, "certificates")}

    def certified(self, name: str, radius: str) -> list[float]:
        """Certified accuracy at a radius in %, a figure a seed."""
        return [*self.certificates(name, radius).values()]

    def accuracies(self, name: str, attack: str, checkpoint: str = "best") -> dict[int, float]:
        """Accuracy under an attack in %, by seed; of the last epoch that of the best where they are one."""
        seeds = {row["seed"]: row for row in self.rows(name, "attacks", checkpoint="best")}
        if checkpoint == "last":
            chosen = {r["seed"]: r["selected"]["epoch"] == r["given"]["epochs"] - 1 for r in self.networks(name)}
            seeds = {seed: row for seed, row in seeds.items() if chosen[seed]}
            seeds |= {row["seed"]: row for row in self.rows(name, "attacks", checkpoint="last")}
        told = {seed: row["attacks"] for seed, row in seeds.items()}
        return {seed: 100 * found[attack]["accuracy"] for seed, found in told.items() if attack in found}

    def accuracy(self, name: str, attack: str, checkpoint: str = "best") -> list[float]:
        """The same, a figure a seed."""
        return [*self.accuracies(name, attack, checkpoint).values()]

    def told(self, names: Sequence[str], parts: str, images: str = "test images") -> str:
        """The line under a table of these parts of the experiment."""
        made = [row for row in filter(self._mine, self.measured) if row["name"] in names]
        first, seeds = made[0], sorted({row["seed"] for row in made})
        spread = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds, the mean and the lowest and highest"
        where = [row["machine"] for row in made]
        commits, machines, torches = (
            ", ".join(sorted({str(machine[key]) for machine in where})) for key in ("commit", "processor", "torch")
        )
        ids = {(row["name"], row["seed"]): row["id"] for row in self.whole["networks"]}
        known = [(row["seed"], row["id"], ids.get((row["name"], row["seed"]))) for row in made if "id" in row]
        again_ = sorted({seed for seed, measured, trained in known if trained not in (None, measured)})
        remade = f"; networks of seed {', '.join(map(str, again_))} made again, with other rounding" if again_ else ""
        minutes = sum(row["cpu_seconds"] for name in names for row in self.networks(name)) / 60
        intervals = [one["interval"] for row in made for one in row.get("attacks", {}).values()]
        intervals += [one for row in made for one in row.get("intervals", {}).values()]
        half = 50 * max(high - low for low, high in intervals)
        how = f"n = {first['n']:,}, α = {first['alpha']}" if "n" in first else f"linf eps = {first['eps']}"
        seeded = f"--seeds {' '.join(map(str, seeds))} --only {parts}"
        return (
            f"\n\n{again(self.whole['command'], seeded)}: {spread}; {first['images']:,} {images} (95 % of "
            f"one seed: ± {half:.1f} at most), {how}; training alone took {minutes:,.0f} CPU minutes: "
            f"{machines}, one thread, torch {torches}, commit {commits}{remade}."
        )


def cells(values: Mapping[str, Sequence[float]]) -> list[str]:
    """A cell a column; a dash where nothing was measured."""
    return [span(told) if told else "–" for told in values.values()]
