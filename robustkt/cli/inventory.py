"""How the answers of list and show look to a person; 80 columns are enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustkt.cli.fitting import say
from robustkt.cli.sparklines import sparkline
from robustkt.cli.tables import Columns, duration, facts, percent, shift
from robustkt.numbers import counted, number
from robustkt.registry import replays
from robustkt.registry.records import data_called

CLAIMED = "†"  # behind a figure that nobody has measured here
CURVE = "curve: certified accuracy over the radii that were asked for, on a scale from 0 to 1"
NAMES = 16  # letters of the longest corruption's name
BELOW = "  "  # before the figures of a measurement
SCREEN = 100  # rows of a list on a terminal; a pipe gets all

if TYPE_CHECKING:
    from rich.console import Console


def listed(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of list."""
    if not result["generations"]:
        where = result["registry"]
        say(console, f"no generations in {where}; make one with `robustkt quickstart` or `robustkt train`")
        return
    shared = {row["data"] for row in result["generations"]}
    several = any(row["modes"] for row in result["generations"])
    columns = ["name", "method", "arch", *(["data"] if len(shared) > 1 else []), "teacher"]
    figures = ("certified", "n", "attacked", "by", "of", "curve", "made")
    table = Columns(*columns, *figures, left=len(columns), spare=("of", "n", "by", "data"), wide=("made", "curve"))
    hidden = len(result["generations"]) - SCREEN if console.is_terminal else 0
    for row in result["generations"][max(hidden, 0) :]:
        cells = {"name": row["generation"], "arch": row["arch"], "data": row["data"]}
        cells |= {"method": row["method"] + _times(row["modes"]), "teacher": row["teacher"] or "–"}
        robust = row["robust"]
        by = (_by(robust), f"{robust['images']:,}") if robust else ("–", "–")
        more = (curve(row["certified"]) or "–", str(row["created"] or "–").partition("T")[0])
        table.add_row(*(cells[column] for column in columns), certified(row), _samples(row), _robust(row), *by, *more)
    if hidden > 0:
        say(console, f"{counted(hidden, 'earlier generation')}: `robustkt list | less` shows all")
    shown = table.show(console)
    if len(shared) == 1:
        say(console, f"data: {shared.pop()}")
    if result["unreadable"]:
        say(console, f"{', '.join(result['unreadable'])}: `robustkt verify` says what is wrong", "damaged  ")
    say(
        console,
        "certified: accuracy at an L2 radius by n samples; attacked: what its strongest attacks left, of so many "
        "images. `robustkt show NAME` has more.",
    )
    if "curve" in shown:
        say(console, CURVE)
    if lacking := [name for name in table.headings if name not in [*shown, *table.wide]]:
        say(console, f"A wider terminal also has {', '.join(lacking)}.")
    if several:
        say(console, "×2: of two modes, with the figures of the default one; `robustkt show NAME` has the others")
    if any(row["robust"] and row["robust"]["network"] == "base" for row in result["generations"]):
        say(console, "* of the base network, without the noise that the generation is used with")
    if any("claimed" in (row[kind] or ()) for row in result["generations"] for kind in ("certified", "robust")):
        say(console, f"{CLAIMED} claimed by who published it: `robustkt audit NAME`, or measure it here")


def curve(figures: Mapping[str, Any] | None) -> str:
    """Certified accuracy over the radii of a table, on a scale from 0 to 1: `█▇▅▁`."""
    told = sorted((figures or {}).get("certified_accuracy", {}).items(), key=_first)
    return sparkline([value for _, value in told], scale=(0, 1))


def _times(modes: Sequence[str]) -> str:
    """How many modes a generation has, where it has several."""
    return f" ×{len(modes)}" if modes else ""


def certified(row: Mapping[str, Any]) -> str:
    """Certified accuracy at the second radius of the table, the first that is not 0."""
    certified = row["certified"]
    if not certified or not certified["certified_accuracy"]:
        return "–"
    radii = sorted(certified["certified_accuracy"].items(), key=lambda item: number(item[0]))
    radius, value = radii[min(1, len(radii) - 1)]
    return f"{percent(value)}{CLAIMED * ('claimed' in certified)} @{radius}"


def _samples(row: Mapping[str, Any]) -> str:
    return f"{row['certified']['n']:,}" if row["certified"] else "–"


def _robust(row: Mapping[str, Any]) -> str:
    robust = row["robust"]
    if not robust:
        return "–"
    norm = "" if robust["norm"] == "linf" else robust["norm"] + " "
    marks = "*" * (robust["network"] == "base") + CLAIMED * ("claimed" in robust)
    return f"{percent(robust['robust_accuracy'])}{marks} @{norm}{robust['eps']}"


def _by(robust: Mapping[str, Any]) -> str:
    """The attack that left the least, without its settings."""
    return str(robust["attack"]).partition(":")[0]


def attacked(robust: Mapping[str, Any]) -> str:
    """`autoattack 52.0% @8/255 of 200, base`."""
    base = ", base" if robust["network"] == "base" else ""
    return f"{_by(robust)} {_robust({'robust': robust}).replace('*', '')} of {robust['images']:,}{base}"


def shown(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of show."""
    recipe, record = result["manifest"]["recipe"], result["record"]
    data = recipe["data"]
    training = recipe["training"]
    selected, versions = record.get("selected") or {}, record.get("versions") or {}
    settings = ", ".join(f"{k} {v}" for k, v in sorted(recipe["settings"].items()) if k not in result["unused"])
    told = {
        "generation": ", ".join(dict.fromkeys([result["generation"], *result["names"]])),
        "id": result["id"],
        "method": f"{recipe['method']} ({settings})" if settings else recipe["method"],
        "modes": ", ".join(
            f"{domain} ({'default, ' if mode['default'] else ''}{mode['bytes'] or 0:,} bytes)"
            for domain, mode in result["modes"].items()
        ),
        "architecture": recipe["arch"]
        + (f" of {recipe['arch_version']}" if recipe.get("arch_version") else "")
        + (f", {record['parameters']:,} parameters" if "parameters" in record else ""),
        "data": f"{data_called(data['name'], record)}, {len(data['classes'])} classes, "
        f"{_size(data['shape'])}, {data['fingerprint'][:19]}…",
        "training": f"{counted(training['epochs'], 'epoch')} of batches of {training['batch_size']}{_split(recipe)}, "
        f"lr {training['lr']:g} {training['schedule']}, seed {recipe['seed']}, {recipe['precision']}"
        if training
        else "none: mixed from its parents"
        if recipe["method"] == "soup"
        else "elsewhere: imported; σ, threat and accuracies above are claims of the source",
        "parents": ", ".join(f"{role} {p['name']}" for role, p in result["parents"].items()) or "none",
        "made": f"{record.get('started', '–')}, {duration(record.get('seconds'))} on {record.get('device', '–')}, "
        + ", ".join(f"{k} {v}" for k, v in versions.items()),
    }
    if selected:
        told["selected"] = f"epoch {selected['epoch'] + 1}: {selected['metric']} {percent(selected['score'])}"
    if (teacher := result["parents"].get("teacher")) and (line := replays.told(record, teacher["name"])):
        told["teacher"] = line
    if measured := record.get("measured"):
        told["measured"] = f"{measured['metric']} {percent(measured['score'])}, {counted(measured['images'], 'image')}"
    if result["pulled"]:
        origin = result["pulled"]
        told["pulled from"] = f"{origin['repo']}@{origin['commit']}"
    facts(console, {key: value for key, value in (told | _course(result)).items() if value})
    for c in result["certificates"]:
        _certificate(console, c)
    base = ", base network without noise" if "sigma" in recipe["settings"] else ""
    for e in result["evaluations"]:
        if e["settings"].get("corruption"):
            continue
        s, f = e["settings"], e["figures"]
        attacks = "  ".join(
            f"{name} {percent(a['accuracy'])}" + (" (smoothed)" if a.get("smoothed") else "")
            for name, a in f["attacks"].items()
        )
        images = counted(s["images"], "image")
        say(console, f"{s['norm']} {s['eps']}, {images}{base}{_claim(e)}:", f"\nevaluation{_mode(s)}  ")
        say(console, attacks, BELOW)
    for w in result["sweeps"]:
        _sweep(console, w)
    before = ""
    for (done, name), figures in _corrupted(result["evaluations"]).items():
        if done != before:
            say(console, f"{done}{base}, by severity:", "\ncorrupted  ")
        by = "  ".join(f"{percent(value)} @{severity}" for severity, value in sorted(figures.items()))
        say(console, by, f"{BELOW}{name:<{NAMES}}  ")
        before = done


def _size(shape: Sequence[int]) -> str:
    """`28x28 grey`, `32x32 RGB`: width and height in pixels."""
    channels, height, width = shape
    kind = {1: "grey", 3: "RGB"}.get(channels, f"of {channels} channels")
    return f"{width}x{height} {kind}"


def _course(result: Mapping[str, Any]) -> dict[str, str]:
    """How loss and held-out figure went over the epochs, as curves with their ends."""
    told = {}
    forms: dict[str, Callable[[float], str]] = {"loss": "{:.4g}".format, "held_out": percent}
    for name, form in forms.items():
        values = [epoch.get(name) for epoch in result["epochs"]]
        there = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
        if len(there) > 1:
            line = sparkline([value if value in there else None for value in values])
            told[name.replace("_", "-")] = f"{line}  {form(there[0])} → {form(there[-1])}"
    return told


def _certificate(console: Console, c: Mapping[str, Any]) -> None:
    s, f = c["settings"], c["figures"]
    noise = "" if s["noise"] == "gaussian" else f" {s['noise']}"
    sigma = f"σ {s['sigma']}, " if s["sigma"] else ""
    told = f"{s['norm']}, {sigma}{s['mode']}, n {s['n']:,}, α {s['alpha']:g}, {counted(f['images'], 'image')}{shift(s)}"
    say(console, f"{told}{_claim(c)}:", f"\ncertificate{_mode(s)}{noise}  ")
    radii = "  ".join(f"{percent(v)} @{r}" for r, v in sorted(f["certified_accuracy"].items(), key=_first))
    say(console, f"{radii}  {curve(f)}", BELOW)
    say(console, f"ACR {f['acr']:.4f}, abstained {percent(f['abstain_rate'])}", BELOW)


def _sweep(console: Console, w: Mapping[str, Any]) -> None:
    s, points = w["settings"], w["figures"]["points"]
    images = counted(s["images"], s["split"] + " image")
    say(
        console,
        f"{', '.join(s['attacks'])} {s['norm']} {s['eps']}, {images}, clean/robust by β{_claim(w)}:", "\nsweep  ",
    )  # fmt: skip
    shares = (f"{percent(p['clean_accuracy'])}/{percent(p.get('robust_accuracy'))} @{p['beta']:g}" for p in points)
    say(console, "  ".join(shares), BELOW)
    for kind in ("clean", "robust"):
        values = [p.get(f"{kind}_accuracy") for p in points]
        if len(points) > 1 and None not in values:
            say(
                console,
                f"{sparkline(values)}  from {percent(min(values))} to {percent(max(values))}",
                f"{BELOW}{kind:<6}  ",
            )


def _split(recipe: Mapping[str, Any]) -> str:
    """How many parts a batch has, where there are several."""
    parts, sync = recipe.get("world_size", 1), recipe["training"].get("sync_bn")
    return (f" in {parts} parts" if parts > 1 else "") + (", BatchNorm over all of them" if sync else "")


def _corrupted(evaluations: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """Evaluations under corruptions, a row each: what was done and the corruption -> severity -> accuracy."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for e in evaluations:
        s, figures = e["settings"], e["figures"]
        if s.get("corruption"):
            name, _, severity = s["corruption"].partition(":")
            attacks = [attack for attack in figures["attacks"] if attack != "clean"]
            under = f"worst of {', '.join(attacks)}, {s['norm']} {s['eps']}" if attacks else "no attack"
            told = f"{_mode(s).strip()}{', ' * bool(_mode(s))}{counted(s['images'], 'image')}, {under}"
            rows.setdefault((told + _claim(e), name), {})[severity] = figures["worst"]["accuracy"]
    return dict(sorted(rows.items()))


def _mode(settings: Mapping[str, Any]) -> str:
    return f" @{settings['domain']}" if "domain" in settings else ""


def _claim(result: Mapping[str, Any]) -> str:
    return f"; claimed by {result['claimed']}" if result["claimed"] else ""


def _first(item: tuple[str, float]) -> float:
    return number(item[0])
