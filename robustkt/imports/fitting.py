"""From what a checkpoint holds to a network's own state dict: wrappings and foreign names undone, strictly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robustkt.errors import RobustKTError, UsageError, clip
from robustkt.numbers import counted

State = dict[str, Tensor]
# Where weights lie in a checkpoint, the best first: averaged weights are what papers report.
KEYS = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "best", "last"),
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "student"),
)
PREFIXES = (  # what wrappers put before every name
    *("module.", "_orig_mod.", "ema_model.", "ema.", "model.", "net.", "network.", "backbone.", "student."),
    *("0.", "1.", "_model."),
)
COPIES = ("online_model.", "model.", "module.")  # beside `ema_model.`: the same network, not averaged
MEANS = {"mean": "std", "mu": "sigma", "means": "sds", "_mean": "_std"}  # as normalising layers call theirs
COUNTERS = re.compile(r"(.*\.)?(total_ops|total_params|n_averaged|initted|step|num_batches_tracked)")
DEPTH = 4  # wrappings in one another


class MisfitError(RobustKTError):
    """Weights that are not those of the architecture."""


@dataclass(frozen=True)
class Fitted:
    """A checkpoint's weights under the names of a network of ours."""

    state: State
    key: str  # where in the file they lay, "" for the whole
    mean: tuple[float, ...] | None = None  # of the normalisation in the file, one a channel or one for all
    std: tuple[float, ...] | None = None
    unused: tuple[str, ...] = ()  # names that the public code never uses
    others: tuple[str, ...] = ()  # keys of further weights that fit
    cut: bool = False  # whether rows of the last layer were left out


@dataclass
class _Match:
    """How far one reading of a checkpoint fits."""

    state: State = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    rest: State = field(default_factory=dict)
    cut: bool = False

    @property
    def wrong(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes)


def fit(
    content: Any,
    network: nn.Module,
    *,
    shown: str,
    arch: str,
    key: str | None = None,
    rows: Sequence[int] | None = None,
) -> Fitted:
    """The weights in `content` for `network`, every one of them and nothing else but its normalisation.

    Args:
        content: what a file holds.
        network: without our normalisation; may be on the meta device.
        shown: what messages call the file.
        arch: what they call the network.
        key: where in the file the weights lie, `ema.state_dict`; the best place by default.
        rows: of the last layer, those of the data's classes, in order.

    Raises:
        RobustKTError: there are no weights in it.
        MisfitError: they do not fit; the message names what is missing, unexpected or of another shape.
    """
    places = list(states(content))
    if key is not None:
        known = ", ".join(place for place, _ in places if place)
        places = [(place, state) for place, state in places if place == key]
        if not places:
            raise UsageError(
                f"{shown} holds no weights under '{key}'", f"Known: {known}." if known else "Leave it out."
            )
    if not places:
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise RobustKTError(f"{shown} holds no weights: {clip(held, 80)}", "Give a file with a state dict in it.")
    tried = [(place, match(state, network, rows)) for place, state in places]
    whole = [(place, found) for place, found in tried if not found.wrong]
    if not whole:
        raise misfit(min(tried, key=lambda pair: pair[1].wrong)[1], shown, arch)
    place, found = whole[0]
    mean, std = statistics(found.rest, shown)
    return Fitted(found.state, place, mean, std, tuple(found.unused), tuple(other for other, _ in whole[1:]), found.cut)


def states(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Every table of tensors in a checkpoint, with its place, the likeliest first."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    own = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if own:
        yield place, own
    ranked = sorted(
        (KEYS.index(str(name).lower()) if str(name).lower() in KEYS else len(KEYS), number, str(name), inner)
        for number, (name, inner) in enumerate(content.items())
        if isinstance(inner, Mapping) and not str(name).lower().startswith("optim")
    ) if not own or depth == 0 else []  # fmt: skip
    for _, _, name, inner in ranked:
        yield from states(inner, f"{place}.{name}" if place else name, depth + 1)


def match(state: State, network: nn.Module, rows: Sequence[int] | None = None) -> _Match:
    """The best reading of a state dict: as it is, without prefixes, under the names of the public codes."""
    best: _Match | None = None
    waiting: list[tuple[State, State, int]] = [(state, {}, 0)]
    while waiting:
        inner, rest, depth = waiting.pop(0)
        for found in _readings(inner, rest, network, rows):
            if best is None or found.wrong < best.wrong:
                best = found
        if best is not None and not best.wrong:
            return best
        for prefix in PREFIXES if depth < DEPTH else ():
            under = {name[len(prefix) :]: value for name, value in inner.items() if name.startswith(prefix)}
            if under:
                over = {name: value for name, value in inner.items() if not name.startswith(prefix)}
                if prefix.startswith("ema"):
                    over = {name: value for name, value in over.items() if not name.startswith(COPIES)}
                waiting.append((under, rest | over, depth + 1))
    return best or _Match()


def _readings(inner: State, rest: State, network: nn.Module, rows: Sequence[int] | None) -> Iterator[_Match]:
    """A state dict under its own names, and under those of the public codes."""
    wanted = network.state_dict()
    foreign = getattr(network, "foreign", None)
    for translate in (None, foreign) if foreign else (None,):
        found = _Match()
        for name, value in inner.items():
            ours = translate(name) if translate else name
            if ours is None:
                found.unused.append(name)
            elif ours in wanted:
                found.state[ours] = value
            elif _statistic(name) or COUNTERS.fullmatch(name):
                found.rest[name] = value
            else:
                found.unexpected.append(name)
        for name, value in rest.items():
            if _statistic(name) or COUNTERS.fullmatch(name):
                found.rest[name] = value
            else:
                found.unexpected.append(name)
        for name, target in wanted.items():
            known = found.state.get(name)
            if known is None and name.endswith("num_batches_tracked"):
                found.state[name] = target  # a counter that training alone reads; older versions of torch had none
            elif known is None:
                found.missing.append(name)
            elif rows and _larger(known, target, rows):
                found.state[name], found.cut = known[list(rows)], True
            if name in found.state and found.state[name].shape != target.shape:
                here, there = tuple(found.state[name].shape), tuple(target.shape)
                found.shapes.append(f"{name} is {here}, not {there}")
        yield found


def _larger(known: Tensor, target: Tensor, rows: Sequence[int]) -> bool:
    """Whether `target` is the last layer's for a choice of the classes that `known` tells apart."""
    if not target.dim() or known.shape[1:] != target.shape[1:] or len(target) != len(rows):
        return False
    return len(known) > max(len(rows), *rows)


def misfit(found: _Match, shown: str, arch: str) -> MisfitError:
    """What does not fit, and what to do."""
    told = [
        f"{counted(len(names), 'tensor')} {what} ({clip(', '.join(names[:3]), 90)}{', …' if len(names) > 3 else ''})"
        for what, names in (("missing", found.missing), ("unexpected", found.unexpected), ("misshapen", found.shapes))
        if names
    ]
    fix = "Name the architecture that it was trained as: --arch; `docs/import-export.md` has the families."
    if found.shapes and len(found.shapes) <= 2 and not found.missing and not found.unexpected:
        fix = "It tells other classes apart than the data: name its data, or --classes with the rows of yours."
        if any(found.state[shape.partition(" ")[0]].dim() > 2 for shape in found.shapes):
            fix = "It takes images of another form than the data's: other channels, or another size (--image-size)."
    return MisfitError(f"{shown} does not fit {arch}: {'; '.join(told)}", fix)


def _statistic(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf in MEANS or leaf in MEANS.values()


def statistics(rest: State, shown: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation that a normalising layer in the file had, for images in [0, 1].

    Raises:
        RobustKTError: one without the other, or no numbers to divide by.
    """
    found = {name.rpartition(".")[2]: value for name, value in rest.items() if _statistic(name)}
    if not found:
        return None, None
    pair = next(((found[m], found[s]) for m, s in MEANS.items() if m in found and s in found), None)
    if pair is None:
        raise RobustKTError(
            f"{shown} holds half a normalisation: {', '.join(found)}", "Give both: --normalization MEAN,…/STD,…"
        )
    if any(value.numel() > 64 for value in pair):
        raise RobustKTError(f"{shown} normalises by more than a number a channel", "It cannot be imported.")
    mean, std = (tuple(float(v) for v in value.double().flatten()) for value in pair)
    if max(std) > 2:  # of pixel values up to 255
        mean, std = tuple(v / 255 for v in mean), tuple(v / 255 for v in std)
    if not all(v == v and abs(v) < 1e6 for v in (*mean, *std)) or min(std) <= 0:
        raise RobustKTError(f"{shown} normalises by {std}, which is no standard deviation", "It cannot be imported.")
    return mean, std
