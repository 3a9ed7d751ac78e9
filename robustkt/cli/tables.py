"""How each command's answer looks to a person; 80 columns are enough."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkt.cli.fitting import fitted, folded, say
from robustkt.numbers import counted, floored

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class Columns:
    """Rows under headings: a ruled Rich table on a terminal, aligned plain lines in a pipe."""

    def __init__(self, *headings: str, left: int = 1, spare: Sequence[str] = (), wide: Sequence[str] = ()) -> None:
        self.headings, self.left = headings, left  # the first `left` columns hold text, the others figures
        self.spare, self.wide = spare, wide  # what a narrow terminal leaves out, in this order; what a wide one adds
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """One row of plain text."""
        self.rows.append(cells)

    def show(self, console: Console) -> list[str]:
        """Print the table; returns the headings of the columns that there was room for."""
        if not console.is_terminal:  # Rich needs most of a millisecond a row
            console.file.write("".join(f"{line}\n" for line in self._lines()))
            return [heading for heading in self.headings if heading not in self.wide]
        spare = [*self.wide, *self.spare]
        kept, widths = fitted(self.headings, self.rows, console.width, left=self.left, spare=spare)
        console.print(self._drawn(kept, widths, console.width))
        return [self.headings[i] for i in kept]

    def _drawn(self, kept: Sequence[int], widths: Sequence[int], room: int) -> Table:
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        tight = sum(widths) + 2 * len(widths) > room  # then the columns stand one space apart, not two
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1 - tight, 0, 0), header_style="bold")
        table.show_edge = not tight
        for i, width in zip(kept, widths, strict=True):
            side, heading = "left" if i < self.left else "right", escape(folded(self.headings[i], width))
            table.add_column(heading, justify=side, no_wrap=True, overflow="ellipsis", width=width, vertical="bottom")  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*(escape(row[i]) for i in kept))
        return table

    def _lines(self) -> Iterator[str]:
        from rich.cells import cell_len

        kept = [i for i, heading in enumerate(self.headings) if heading not in self.wide]
        everything = [[row[i] for i in kept] for row in (self.headings, *self.rows)]
        sizes = [[len(cell) if cell.isascii() else cell_len(cell) for cell in row] for row in everything]
        widths = [max(column) for column in zip(*sizes, strict=True)]
        for row, lengths in zip(everything, sizes, strict=True):
            gaps = [" " * (width - length) for width, length in zip(widths, lengths, strict=True)]
            sides = zip(kept, row, gaps, strict=True)
            cells = [cell + gap if i < self.left else gap + cell for i, cell, gap in sides]
            yield "  ".join(cells).rstrip()


def program() -> str:
    """What to type to run this program here, quoted for the shell: as a module, by its name, or by its path."""
    if Path(sys.argv[0]).name == "__main__.py":
        return "python -m robustkt"
    return "robustkt" if shutil.which("robustkt") else shlex.quote(sys.argv[0])


def percent(value: float | None) -> str:
    """A share as `93.4%`, or a dash."""
    return "–" if value is None else f"{round(value, 9) + 0.0:.1%}"  # never −0.0%


def duration(seconds: float | None) -> str:
    """Seconds as people say them: `8.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def facts(console: Console, told: Mapping[str, Any]) -> None:
    """Names and values, one below the other."""
    width = max(len(key) for key in told)
    for key, value in told.items():
        say(console, str(value), f"{key:<{width}}  ")


def trained(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of train and distill."""
    selected = result["selected"] or {}
    told = {
        "generation": result["generation"] + ("" if result["created"] else " (was there already)"),
        "id": result["id"][:19] + "…",
        "method": f"{result['method']}, {result['arch']} on {result['data']}",
        "selected": f"epoch {selected['epoch'] + 1}: {selected['metric']} {percent(selected['score'])}"
        if selected
        else "–",
        "took": duration(result["wall_seconds"]),
    }
    facts(console, told)


RADII = {"l2": "L2 radius", "linf": "L∞ radius", "l1": "L1 radius", "l0": "pixels changed"}


def certified(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of certify."""
    stops = result["mode"] in ("sequential", "looks")
    most = "≤ " if stops or result["mode"] == "adaptive" else "= "
    together = " for all images together" if result["alpha_image"] != result["alpha"] else ""
    table = Columns(
        RADII.get(result["norm"], f"{result['norm'].upper()} radius"), "certified accuracy", "95 % interval", left=0
    )
    for radius, value in result["certified_accuracy"].items():
        low, high = result["intervals"][radius]
        table.add_row(radius, percent(value), f"{percent(low)} – {percent(high)}")
    say(
        console,
        f"{_smoothing(result)}, n {most}{result['n']:,}, α = {result['alpha']:g}{together}, "
        f"{counted(result['images'], 'test image')}{shift(result)}",
        f"{result['generation']}  ",
    )
    table.show(console)
    check = result["self_check"] or {"votes": 0}
    told = {
        "abstained": percent(result["abstain_rate"]),
        "drawn": f"{result['samples_per_image']:,.0f} noisy copies an image ({result['mode']})",
        "ACR": f"{result['acr']:.4f}  (average certified radius; {'at stopping' if stops else 'grows with n'})",
        "radius": "" if result["norm"] == "l2" else result["conversion"],
        "ran in": result["precision"] + (", compiled" if result["compiled"] else ""),
        "checked": f"{check['differ_from_fp32']} of {check['votes']} votes differ from the plain network's in fp32"
        if check["votes"]
        else "",
        "took": duration(result["seconds"]) + (", measured earlier" if result["reused"] else ""),
        "log": _from_here(result["log"]),
    }
    facts(console, {name: fact for name, fact in told.items() if fact})


def _from_here(place: str) -> str:
    """A path as it would be typed here, where it lies below the working folder."""
    path, here = Path(place), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else place


def _smoothing(result: Mapping[str, Any]) -> str:
    """The noise in few words."""
    name = "" if result["noise"] == "gaussian" else result["noise"] + " noise"
    sigma = f"σ = {result['sigma']:g}" if result["sigma"] else ""
    return ", ".join(part for part in (name, sigma) if part)


def evaluated(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of evaluate."""
    table = Columns("attack", "accuracy", "95 % interval", "norm", "eps")
    for name, attack in result["attacks"].items():
        low, high = attack["interval"]
        table.add_row(
            name,
            percent(attack["accuracy"]),
            f"{percent(low)} – {percent(high)}",
            attack["norm"] or "",
            attack["eps"] or "",
        )
    worst = result["worst"]
    low, high = worst["interval"]
    smoothed = [name for name, attack in result["attacks"].items() if attack.get("smoothed")]
    if len(result["attacks"]) > 1:
        table.add_row("worst case", percent(worst["accuracy"]), f"{percent(low)} – {percent(high)}", "", "")
    whose = result["network"] + (f"; {', '.join(smoothed)}: the smoothed classifier" if smoothed else "")
    images = counted(result["images"], "test image") + shift(result)
    say(console, f"{whose}; {images}", f"{result['generation']}  ")
    table.show(console)
    for name, attack in result["attacks"].items():
        if "abstained" in attack:
            shares = f"wrong {percent(attack['wrong'])}, abstained {percent(attack['abstained'])}"
            say(console, f"{name}, the smoothed classifier: {shares}")
        if attack.get("stages"):
            left = "  ".join(f"{stage} {percent(share)}" for stage, share in _last_of_each(attack["stages"]).items())
            say(console, f"{name}, left after each: {left}")
    if "transfer" in result:
        told, (low, high) = result["transfer"], result["transfer"]["interval"]
        share = f"{percent(told['rate'])} [{percent(low)}, {percent(high)}]" if told["fooled_student"] else "–"
        of = f"{told['fooled_teacher']} of {told['fooled_student']}"
        say(console, f"fools its teacher {told['teacher']} too: {share}, {of} of pgd-sat's examples")
    for warning in result["warnings"]:
        say(console, warning, "warning  ")


def shift(settings: Mapping[str, Any]) -> str:
    """What was done to the images, where anything was."""
    return f" under {settings['corruption']}" if settings.get("corruption") else ""


def shifted(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of evaluate under several corruptions."""
    told = result["corruptions"]
    severities = sorted({int(severity) for row in told.values() for severity in row["severities"]})
    table = Columns("corruption", *map(str, severities), "mean", "95 % interval")
    for name, row in told.items():
        cells = [row["severities"].get(str(severity), {}).get("accuracy") for severity in severities]
        table.add_row(name, *map(percent, cells), *_share(row["mean"]))
    empty = [""] * len(severities)
    table.add_row("mean", *empty, *_share(result["mean"]))
    table.add_row("clean images", *empty, *_share(result["clean"]))
    ball = f" {result['norm']} {result['eps']}" if result["eps"] else ""
    under = "" if result["attacks"] == ["clean"] else f", worst of {', '.join(result['attacks'])}{ball}"
    images = counted(result["images"], "test image")
    say(console, f"{result['network']}{under}; {images}, by severity", f"{result['generation']}  ")
    table.show(console)


def _share(figure: Mapping[str, Any]) -> tuple[str, str]:
    """An accuracy and its interval."""
    low, high = figure["interval"]
    return percent(figure["accuracy"]), f"{percent(low)} – {percent(high)}"


def _last_of_each(stages: Mapping[str, float]) -> dict[str, float]:
    """`apgd-t 1` … `apgd-t 9` as one `apgd-t`: what was left after its last target."""
    return {stage.partition(" ")[0]: share for stage, share in stages.items()}


def benched(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of bench."""
    table = Columns("what", "ours", "theirs", "times faster")
    for name, figure in result["figures"].items():
        ours, plain = duration(figure["ours_seconds"]), duration(figure["plain_seconds"])
        table.add_row(name.replace("_", " "), ours, plain, f"{figure['ratio']:.2f}")
    table.show(console)
    machine = result["machine"]
    told = f"{result['arch']}, batches of {result['batch_size']}; {machine['device']}, {machine['threads']} threads"
    say(console, told)


def bench_trained(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of bench train."""
    steps = {name: f for name, f in result["figures"].items() if "profile" in f}
    others = {name: f for name, f in result["figures"].items() if "profile" not in f}
    if steps:
        table = Columns("objective", "images/s", "× natural", "of minimum", "× plain loop", "peak MiB")
        phases = ("data", "attack", "teacher", "forward", "backward", "optimiser")
        profile = Columns("seconds of a step", *phases)
        for name, f in steps.items():
            shares = [f"{f[k]:.2f}" if f[k] is not None else "" for k in ("cost", "of_minimum", "times_plain_loop")]
            table.add_row(name, f"{f['images_per_second']:,.0f}", *shares, f"{f['peak_bytes'] / 2**20:,.0f}")
            profile.add_row(name, *(f"{f['profile'].get(phase, 0):.3f}" for phase in phases))
        table.show(console)
        profile.show(console)
        side = result["image_size"]
        say(
            console,
            f"{result['arch']}, {side}x{side}, batches of {result['batch_size']}, {result['precision']}"
            f"{', compiled' if result['compiled'] else ''}; × natural: times the seconds of plain training; × plain "
            "loop: times faster than the paper's script; MiB: tensors of a step at its peak, beyond what stays",
        )
    if others:
        benched(console, {**result, "figures": others})


def predicted(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of predict."""
    levels = result["norm"] != "l0"
    columns = ("file", "class", RADII.get(result["norm"], f"{result['norm'].upper()} radius"))
    table = Columns(*columns, *(("all pixels",) if levels else ()), "copies", left=2)
    for p in result["predictions"]:
        changed = ([f"±{p['levels']}/255" if not p["abstained"] else ""]) if levels else []
        radius = "" if p["abstained"] else floored(p["radius"], 4)
        table.add_row(p["file"], "abstained" if p["abstained"] else p["class"], radius, *changed, f"{p['drawn']:,}")
    table.show(console)
    say(
        console,
        f"smoothed {result['generation']}, {_smoothing(result)}; each radius fails to hold with probability at most "
        f"{result['alpha']:g}; it does not say that the class is right"
        + ("; all pixels: what each value may change by at once" if levels else ""),
    )


def copied(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of copy."""
    table = Columns("generation", "id", "state", left=3)
    for row in result["generations"]:
        state = ("it would go" if result["dry_run"] else "copied") if row["new"] else "was there"
        table.add_row(row["generation"], row["id"][7:19], state)
    table.show(console)
    told = f"{counted(result['files'], 'file')}, {result['bytes']:,} bytes, from {result['from']} to {result['to']}"
    say(console, f"dry run, nothing is written: {told}" if result["dry_run"] else told)
    for path in result["kept"]:
        say(console, f"another one is there, and stays: {path}")


def quickstart(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of quickstart."""
    table = Columns(
        "generation", "method", "network", "r=0", "r=¼", "r=½", "ACR", "abst.", "clean", "PGD", "train", left=3
    )
    for row in result["table"]:
        radii = row.get("certified_accuracy") or {}
        certified = [_points(radii.get(r)) for r in ("0", "0.25", "0.5")]
        table.add_row(
            row["generation"], row["method"], row["arch"], *certified,
            f"{row['acr']:.3f}" if "acr" in row else "–", _points(row.get("abstain_rate")),
            _points(row["clean_accuracy"]), _points(row["robust_accuracy"]), f"{row['train_seconds']:.0f} s",
        )  # fmt: skip
    table.show(console)
    say(
        console,
        f"in %. Certified at L2 radius r: smoothed with σ = {result['sigma']}, n = {result['n']:,}, α = 0.001. "
        f"Clean and PGD: the network without noise, linf eps {result['eps']}.",
    )
    console.print()
    say(
        console,
        f"gen1 and scratch are the same network: carrying the robustness over took {result['speedup']:.1f} times less "
        f"time than training it. gen2 keeps {percent(result['retained'])} of gen0's certified accuracy at r = ¼.",
    )
    console.print(
        f"\npage       {result['report']}\npublished  {result['published']}\nregistry   {result['registry']}",
        markup=False,
        soft_wrap=True,
    )
    name = program()
    console.print(f"next       {name} lineage", markup=False, soft_wrap=True)
    for further in ("distill --from gen2 --to resnet18", "certify --sigma 0.25", "push gen2 --dry-run"):
        console.print(f"           {name} {further}", markup=False, soft_wrap=True)


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
