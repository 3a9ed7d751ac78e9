"""Certificates of a test set by randomized smoothing; what was interrupted goes on, what is finished is re-used."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from robustkt import certlog, smooth
from robustkt import data as datasets
from robustkt.api.certifyplan import Plan, planned
from robustkt.api.loading import load_network, machine
from robustkt.api.results import CertificateSet
from robustkt.api.smoothing import (
    SAMPLES,
    check_place,
    default_radii,
    header_of,
    tell_others,
)
from robustkt.api.sofar import SoFar
from robustkt.generation import Generation
from robustkt.progress import Progress, Silent
from robustkt.ranks import Ranks, ranks
from robustkt.registry import Registry, Result
from robustkt.registry.files import write_atomic
from robustkt.registry.heartbeats import Heartbeat
from robustkt.registry.measurements import key_of, settled
from robustkt.votes import Votes

TELL_SECONDS = 30.0  # how often a line is written where no bar is drawn
SHOW_SECONDS = 1.0  # how often the figures so far are shown
STOPS_AT = 5  # what share of the copies a mode that stops takes, roughly
CHECKED = 8  # images whose votes are compared with the plain fp32 network's


def certify(
    generation: str = "@latest",
    *,
    sigma: str | float | Fraction | None = None,
    mode: str = "sequential",
    n: int = SAMPLES,
    n0: int = 100,
    alpha: float = 0.001,
    radii: Sequence[Fraction] | None = None,
    skip: int | None = None,
    max_images: int = 500,
    noise: str = "gaussian",
    norm: str | None = None,
    simultaneous: bool = False,
    seed: int = 0,
    out: Path | None = None,
    last: bool = False,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    batch_size: int | None = None,
    fresh: bool = False,
    corruption: str | None = None,
    progress: Progress | None = None,
) -> CertificateSet:
    """Certificates of the smoothed classifier on test images; an interrupted run continues, a finished one is re-used.

    Under `torchrun` the ranks share the images; the first of them keeps the result.

    Args:
        generation: whose network is smoothed.
        sigma: standard deviation of the noise, in [0, 1] pixel units; by default the one it was trained under.
        mode: the statistical procedure; `fixed` is CERTIFY of 1902.02918 and `randomised` its exact form; `sequential`
            and `looks` decide the radii and stop; `adaptive` comes within 1 % of the radius of `fixed`.
        n: noisy copies that bound the probability; at most so many in the modes that stop.
        n0: further ones that select the class.
        alpha: largest probability that a certificate is wrong, for each image.
        radii: where certified accuracy is reported, in units of the norm; by default a grid up to the largest.
        skip: take every skip-th test image; by default as many as give `max_images` spread over the test set.
        max_images: at most so many.
        noise: `gaussian`, `quantised`, `uniform`, `laplace` or `ablation:keep=K`.
        norm: `l2`, `linf`, `l4` … (gaussian, quantised), `l1` (uniform, laplace), `l0` (ablation).
        simultaneous: `alpha` bounds the probability that any certificate of the set is wrong: a share each.
        seed: of the noise.
        out: also write the log there, and its header beside it as OUT.json.
        last: the last epoch's weights instead of the selected ones.
        data: another data set of the same shape and classes, instead of the generation's own.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        precision: of the forward pass; `auto` is the fastest of the device. Noise is drawn and added in fp32.
        compile: `on`, `off`, or `auto`: where there is a compiler and enough work.
        batch_size: noisy images a forward pass; does not change the noise.
        fresh: measure again although a result is there.
        corruption: of the images that are certified, as `gaussian-noise:3`; radii are around the corrupted image.
        progress: where to report.

    Returns:
        generation, id, corruption, sigma, alpha, mode, n, n0, noise, norm, images, abstain_rate, acr,
        certified_accuracy {radius: value}, intervals {radius: [low, high]}, samples_per_image, seconds, self_check,
        log, reused; with `.to_pandas()` and `.plot()`.

    Raises:
        RobustKTError: anything the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    plan = planned(
        registry, generation, sigma=sigma, mode=mode, n=n, n0=n0, alpha=alpha, radii=radii, skip=skip,
        max_images=max_images, noise=noise, norm=norm, simultaneous=simultaneous, seed=seed, last=last, data=data,
        data_dir=data_dir, device=device, precision=precision, compile=compile, batch_size=batch_size,
        corruption=corruption,
    )  # fmt: skip
    found, settings, folder, key = plan.found, plan.settings, plan.folder, key_of(plan.settings)

    def there() -> Result | None:
        unfinished = any(folder.glob("*.tsv"))  # also of an interrupted --fresh, beside the earlier result
        return None if fresh or unfinished else settled(registry.result(found.id, "certificate", key))

    if out is not None:
        check_place(out)
    with ranks() as group:
        group.agree({"generation": found.id, "data set": settings["data"], "certificate": settings})
        stored = there()
        if not group.first_says(stored is not None):
            alone = registry.working(folder, "this very certification", [found.id], fresh=fresh)
            with alone if group.rank == 0 else contextlib.nullcontext():
                stored = there()  # by the process that held the lock before
                if not group.first_says(stored is not None):
                    _Job(plan, progress).measure(registry, group, last=last)
        elif group.rank == 0:
            progress.note(f"{found.name} has this very certificate already; --fresh measures it again")
        group.gather(b"")  # nobody looks before the first has stored it
    result = stored or registry.result(found.id, "certificate", key)
    if result is None:  # on another machine of the group, which has no view of the first one's registry
        nowhere = functools.partial(registry.log, Result("certificate", key, {}, folder))
        return CertificateSet({"generation": found.name, "id": found.id, "log": None}, found, settings, {}, nowhere)
    log = registry.log(result)
    if out is not None and group.rank == 0:
        write_atomic(out.resolve(), log)
        write_atomic(header_of(out), header(found, result))
    rows = certlog.parse(log.decode())
    tell_others(registry, found, settings, progress)
    told = {
        "generation": found.name,
        "id": found.id,
        "corruption": settings.get("corruption"),
        **{name: settings[name] for name in ("alpha", "mode", "n", "n0", "norm", "noise", "precision", "compiled")},
        "alpha_image": plan.share,
        "sigma": float(Fraction(settings["sigma"])) if settings["sigma"] else None,
        "conversion": plan.noise.about,
        **certlog.summarise(rows, plan.grid),
        "samples_per_image": sum(row.drawn for row in rows) / len(rows),
        "seconds": result.content.get("seconds", sum(row.seconds or 0 for row in rows)),
        "self_check": result.content.get("self_check"),
        "log": str(out or registry.log_path(result)),
        "reused": stored is not None,
    }
    return CertificateSet(told, found, settings, told, functools.partial(bytes, log))


@dataclass(frozen=True)
class _Job:
    """One certification on its way."""

    plan: Plan
    progress: Progress

    def measure(self, registry: Registry, group: Ranks, *, last: bool) -> None:
        """This rank's images; then the first rank stores everybody's."""
        group.gather(b"")  # the first has the job's folder ready
        plain = load_network(registry, self.plan.found, last=last)
        model = self.plan.prepared(plain, compiled=self.plan.settings["compiled"])
        check = self._self_check(model, plain) if group.rank == 0 else {}
        rows, seconds = self._run(model, group)
        parts = group.gather(json.dumps(seconds).encode() + b"\n" + certlog.text(rows).encode())
        if group.rank:
            return
        merged: dict[int, certlog.Row] = {}
        for part in parts:
            merged |= {row.idx: row for row in certlog.parse(part.decode().split("\n", 1)[1])}
        longest = max(float(part.split(b"\n", 1)[0]) for part in parts)
        _store(registry, self.plan, [merged[i] for i in self.plan.indices], longest, check | {"ranks": group.world})

    def _run(self, model: nn.Module, group: Ranks) -> tuple[list[certlog.Row], float]:
        """The rows of this rank's images, and the seconds of all runs; the votes of earlier runs are counted again."""
        mine = self.plan.indices[group.rank :: group.world]
        votes = Votes(
            self.plan.folder / f"votes-{group.rank}.tsv",
            self.plan.folder.glob("votes-*.tsv"),
            job=self.plan.folder.name,
        )
        with contextlib.closing(votes):
            group.gather(b"")  # everybody has read before anybody writes
            told = {name: self.plan.settings[name] for name in ("mode", "n", "noise")}
            heart = Heartbeat(
                self.progress,
                None if group.rank else self.plan.folder,
                generation=self.plan.found.name,
                images=len(mine),
                **told,
            )
            return self._certify(model, mine, votes, heart), votes.seconds

    def _certify(self, model: nn.Module, mine: Sequence[int], votes: Votes, heart: Heartbeat) -> list[certlog.Row]:
        per_image = self.plan.most
        known = votes.known(mine)
        if known:
            self.progress.note(f"continuing: {known} of {len(mine)} images have votes already")
        part = f"{len(mine)} of {len(self.plan.indices)}" if len(mine) < len(self.plan.indices) else f"{len(mine)}"
        done: list[certlog.Row] = []
        sofar = SoFar(self.plan.grid, len(mine), per_image, known)
        with heart.bar(f"certifying {part} images of {self.plan.found.name}", len(mine) * per_image) as bar:
            certified = self.plan.certificates(model, mine, votes, bar.advance)
            shown = told = time.monotonic()
            try:
                for idx, certificate in certified:
                    done.append(certlog.Row.of(idx, int(self.plan.dataset.test.y[idx]), certificate))
                    heart.count(certified=len(done))
                    sofar.add(done[-1])
                    bar.advance(max(0, per_image - certificate.n))  # what was not needed
                    now = time.monotonic()
                    if now - shown > SHOW_SECONDS or len(done) == len(mine):
                        if now - told > TELL_SECONDS:
                            bar.line(sofar.line())
                            told = now
                        bar.advance(0, sofar.shown())
                        shown = now
            except KeyboardInterrupt:
                self._tell_partial(done, len(mine))
                raise
        return done

    def _self_check(self, model: nn.Module, plain: nn.Module) -> dict[str, Any]:
        """How many votes differ from those of the network as it was trained, unfolded, in fp32, on a few images."""
        few = self.plan.indices[:: max(1, len(self.plan.indices) // CHECKED)][:CHECKED]
        differ, votes = smooth.disagreements(
            model,
            plain,
            ((i, datasets.to_float(self.plan.dataset.test.x[i])) for i in few),
            noise=self.plan.noise,
            seed=self.plan.seed,
            device=self.plan.device,
            batch_size=self.plan.settings["batch_size"],
        )
        return {"self_check": {"votes": votes, "differ_from_fp32": differ}}

    def _tell_partial(self, rows: Sequence[certlog.Row], wanted: int) -> None:
        """The table so far, for somebody who stops a run."""
        if not rows:
            return
        figures = certlog.summarise(rows, self.plan.grid)
        self.progress.note(f"so far, {len(rows)} of {wanted} images:")
        for radius, value in figures["certified_accuracy"].items():
            low, high = figures["intervals"][radius]
            self.progress.note(f"  certified at {radius:>6}: {value:6.1%}  [{low:.1%}, {high:.1%}]")


def _store(registry: Registry, job: Plan, rows: Sequence[certlog.Row], seconds: float, more: dict[str, Any]) -> None:
    settings = job.settings
    share = settings.get("alpha_image", settings["alpha"])
    asked = [Fraction(r) for r in settings.get("radii", ())]
    figures = certlog.summarise(rows, asked or default_radii(job.ball, settings["n"], share))
    figures["samples_per_image"] = sum(row.drawn for row in rows) / len(rows)
    data = job.dataset.spec
    preprocessing = {"shape": list(data.shape), "mean": list(data.mean), "std": list(data.std), "range": [0, 1]}
    content = {"settings": dict(settings), "figures": figures, "seconds": seconds, "preprocessing": preprocessing}
    content |= {**more, **machine(job.device)}
    registry.put_result(job.found.id, "certificate", key_of(settings), content, certlog.text(rows).encode())


def header(found: Generation, result: Result) -> bytes:
    """What a log's rows do not say, as JSON to lie beside it: generation, preprocessing, settings, versions."""
    content = {key: value for key, value in result.content.items() if key not in ("log", "log_hash")}
    told = {"generation": found.name, "id": found.id, "arch": found.recipe.arch}
    return json.dumps({**content["settings"], **content, **told}, indent=1, sort_keys=True).encode() + b"\n"
