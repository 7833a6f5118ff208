"""A network trained on a million photographs sees through mirrors but not turns; pooling its first layer ruins it.

EfficientNet-Lite0 tells the thousand classes of ImageNet apart. Nobody asked for its symmetries, so what are they? This
script audits it on photographs that come inside Python packages, 20 of them with labels, and asks

    what changes the answer    quarter turns, a mirror, shifts by a few pixels of the scene, brightness
    where a symmetry is lost   layer by layer, quarter turns next to the mirror
    what a tie would cost      the same network with a layer pooled over quarter turns: the first, as in
                               tie_first_layer(model, CyclicRotation(4)), or a later one; nothing is trained again

and writes tables, pictures and a page, audit.html. What is found stands in docs/pretrained.md.

    python examples/audit_pretrained.py                       no download: pip install "invreg[pretrained]" has all
    python examples/audit_pretrained.py --pictures FOLDER     your own photographs, without labels; checks nothing

Shifts take place inside a photograph of 256 pixels of which the network sees the middle 224: what comes in on one side
is the scene itself, not the other side.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from photographs import MARGIN, NEEDS, Photographs, folder, labelled, missing, pretrained, unlabelled
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from invreg import (
    CyclicRotation,
    Estimate,
    Flip,
    InvarianceReport,
    SaliencyMap,
    TransformationSet,
    measure_invariance,
    measure_layers,
    tie_first_layer,
)
from invreg.audit import LayersReport
from invreg.functional import normalized_logit_error

turns, mirror = CyclicRotation(4), Flip(-1)

NAMES = {
    281: "tabby", 282: "tiger cat", 285: "Egyptian cat", 449: "boathouse", 504: "coffee mug", 517: "crane",
    518: "crash helmet", 560: "football helmet", 650: "microphone", 657: "missile", 698: "palace", 701: "parachute",
    752: "racket", 858: "tile roof", 872: "tripod", 889: "violin", 967: "espresso", 985: "daisy",
}  # fmt: skip
"""ImageNet's names for the classes that the default pictures show."""

STAGES = ("conv", "block10", "block13", "block15", "features", "classes")
"""After which of the network's layers to pool over turns."""

SALIENCY = SaliencyMap(steps=8, cut="quantile", kernel_size=15, sigma=4.0, internal_batch_size=8)
"""Where the network looks: the top tenth of a photograph, blurred; docs/pretrained.md says why not the paper's map."""


def named(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Tells an audit what to call a change of photographs."""
    change.__name__ = name
    return change


def shifts(dim: int, unit: str) -> TransformationSet:
    """Photographs moved along an axis by 1 to 16 pixels; the scene goes on at the edge of what the network sees."""
    pixels = [1, 2, 4, 8, 16]
    assert max(pixels) <= MARGIN, "nothing that wraps around comes into sight"
    there = [named(f"{k} px {unit}", lambda x, k=k: x.roll(k, dim)) for k in pixels]
    return TransformationSet(there, realign=[lambda m, k=k: m.roll(-k, dim) for k in pixels])


def brightness() -> TransformationSet:
    """Photographs that are darker or brighter; what would be brighter than white is white."""
    factors = [0.5, 0.75, 1.25, 1.5]
    changes = [named(f"{factor:g} times", lambda x, f=factor: (f * x).clamp(max=1)) for factor in factors]
    return TransformationSet(changes, realign=[torch.clone] * len(factors))


CHANGES = {
    "turned": turns,
    "mirrored": mirror,
    "moved right": shifts(-1, "right"),
    "moved down": shifts(-2, "down"),
    "brightness": brightness(),
}
"""What is done to the photographs."""


class TurnedBack(nn.Module):
    """A layer applied to all turns of its input; each result is turned back, and their mean turns with the input.

    Unlike the tied layer it keeps the place of what it sees, and is not invariant but equivariant.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The mean, in the shape of the layer's own output."""
        return torch.stack([turns.act(turns.inverse(g), self.layer(turns.act(g, x))) for g in turns.elements()]).mean(0)


@contextmanager
def replaced(model: nn.Module, name: str, layer: nn.Module) -> Iterator[None]:
    """Puts another layer in the place of one, for the block."""
    before = model.get_submodule(name)
    setattr(model, name, layer)
    try:
        yield
    finally:
        setattr(model, name, before)


@torch.no_grad()
def predicted(model: nn.Module, photographs: Photographs) -> Tensor:
    """The class of each photograph, ``(N,)``."""
    inputs = [batch if isinstance(batch, Tensor) else batch[0] for batch in photographs.batches]
    return torch.cat([model(x).argmax(1) for x in inputs])


def audit(model: nn.Module, photographs: Photographs, group: Any, **settings: Any) -> InvarianceReport:
    """An audit without saliency maps, unless they are asked for."""
    return measure_invariance(model, photographs.batches, group, **{"saliency": None, **settings})


@dataclass(frozen=True)
class Pooled:
    """What became of the network with one layer pooled over turns.

    Args:
        share: Of the upright photographs, those whose class is the wanted one; the tie itself checks that the pooled
            network gives the same answer for all turns.
        cost: Operations of a forward, as a multiple of the untouched network's.
    """

    share: float
    cost: float


def pool_each(model: nn.Module, photographs: Photographs, wanted: Tensor) -> dict[tuple[str, str], Pooled]:
    """Pools one layer after the other over turns, by maximum and by mean."""
    x = photographs.pixels[:1].float() / 255
    untouched, found = cost(model, x), {}
    cases = [(stage, reduction) for stage in STAGES for reduction in ("max", "mean")]
    for stage, reduction in tqdm(cases, desc="pooling each layer", unit="network", leave=False, disable=None):
        with tie_first_layer(model, turns, stage, reduction):
            share = (predicted(model, photographs) == wanted).float().mean().item()
            found[stage, reduction] = Pooled(share, cost(model, x) / untouched)
    return found


@torch.no_grad()
def apart(model: nn.Module, photographs: Photographs) -> float:
    """The normalised logit error between two different photographs, on average: a scale for those of changes."""
    logits = torch.cat([model(batch if isinstance(batch, Tensor) else batch[0]) for batch in photographs.batches])
    n = len(logits)
    errors = normalized_logit_error(logits.repeat_interleave(n, 0), logits.repeat(n, 1)).view(n, n)
    return float(errors.sum() / max(1, n * (n - 1)))


@torch.no_grad()
def cost(model: nn.Module, x: Tensor) -> int:
    """Floating-point operations of a forward; a tie is checked in the one before."""
    model(x)
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def percent(estimate: Estimate | None) -> str:
    """A share and its standard error."""
    return "-" if estimate is None else f"{100 * estimate.mean:3.0f} ± {100 * (estimate.standard_error or 0):2.0f} %"


def print_changes(reports: dict[tuple[str, str], InvarianceReport], scale: float) -> None:
    """Prints what each change does to the answers, a table for each source of photographs."""
    for source in dict.fromkeys(source for source, _ in reports):
        mine = {name: report for (of, name), report in reports.items() if of == source}
        first = next(iter(mine.values()))
        print(f"\n{first.samples} photographs from {source}; value ± standard error over photographs")
        print(f"{'':24}{'same class':>14}{'right':>14}   normalised logit error")
        print(f"{'as they are':24}{'':>14}{percent(first.accuracy):>14}")
        for name, report in mine.items():
            for one in report.per_element:
                print(
                    f"{_label(name, one.name):24}{percent(one.consistency):>14}"
                    f"{percent(one.accuracy):>14}   {one.normalized_logit_error}"
                )
    print(f"\nNormalised logit error: 0 = the logits stay; {scale:.2g} = as far as those of another photograph.")


def print_ties(reports: dict[str, InvarianceReport], pools: dict[tuple[str, str], Pooled], what: str) -> None:
    """Prints what a tie costs."""
    print(f"\n{'':46}{'same class':>14}{'right upright':>15}{'right turned':>14}   LI")
    for name, report in reports.items():
        accuracy = report.group_accuracy
        turned = None if accuracy is None else [one.accuracy.mean for one in report.per_element]
        print(
            f"{name:46}{percent(report.consistency):>14}{percent(report.accuracy):>15}"
            f"{'-' if turned is None else f'{100 * sum(turned) / len(turned):.0f} %':>14}   {report.logit_error}"
        )
    print(f"\nPooled over quarter turns after each layer: {what}, by max and by mean; operations per forward")
    for stage in STAGES:
        by_max, by_mean = pools[stage, "max"], pools[stage, "mean"]
        print(f"  {stage:12}{100 * by_max.share:4.0f} %  {100 * by_mean.share:4.0f} %   {by_mean.cost:10.2f} times")
    print()


def check(
    reports: dict[tuple[str, str], InvarianceReport],
    layers: dict[str, LayersReport],
    ties: dict[str, InvarianceReport],
    pools: dict[tuple[str, str], Pooled],
) -> None:
    """Raises unless the default photographs show what this example claims."""
    of = {name: report for (source, name), report in reports.items() if source == "foolbox"}
    accuracy = of["turned"].accuracy.mean
    assert accuracy >= 0.8, f"the network must know photographs as they are: {accuracy:.0%}"
    same = {name: report.consistency.mean for name, report in of.items()}
    assert same["mirrored"] >= 0.85, f"a mirror must leave most answers: {same}"
    assert same["turned"] <= same["mirrored"] - 0.15, f"a turn must change more answers than a mirror: {same}"
    error = {name: report.normalized_logit_error.mean for name, report in of.items()}
    assert error["turned"] > 3 * error["mirrored"] > 0, f"a turn must move the logits far more than a mirror: {error}"
    assert layers["turned"].first_lost.name == layers["mirrored"].first_lost.name == "conv", "lost in the first layer"
    last = {name: next(one for one in report.layers if one.name == "features") for name, report in layers.items()}
    errors = {name: one.equivariance_error.mean for name, one in last.items()}
    assert errors["turned"] > 3 * errors["mirrored"], (
        f"the last features must turn less well than they mirror: {errors}"
    )
    for name, report in ties.items():
        if "pooled" in name:
            assert report.logit_error.mean < 1e-6, f"{name}: a tie must make the logits invariant: {report.logit_error}"
    assert max(pools["conv", how].share for how in ("max", "mean")) <= 0.2, f"a tied first layer must ruin it: {pools}"
    assert pools["features", "mean"].share >= accuracy - 0.1, f"pooled last features must serve: {pools}"


def gallery(model: nn.Module, photographs: Photographs, output: Path) -> None:
    """Draws photographs under each turn and the mirror, with what the network takes them for; framed: a new answer."""
    from matplotlib.figure import Figure

    wanted = [i for name in ("chelsea", "coffee", "camera", "china") for i in _places(photographs, name)]
    rows = wanted or list(range(min(4, len(photographs))))
    x = photographs.pixels[rows].float() / 255
    columns = {f"turned by {90 * k}°" if k else "as it was taken": turns.transform(k, x) for k in range(4)}
    columns["mirrored"] = mirror.transform(1, x)
    figure = Figure(figsize=(8, 1.72 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    with torch.no_grad():
        first = model(x).argmax(1)
        for column, (title, shown) in zip(axes.T, columns.items(), strict=True):
            column[0].set_title(title, size=9)
            share, classes = model(shown).softmax(1).max(1)
            for i, axis in enumerate(column):
                changed = classes[i] != first[i]
                axis.imshow(shown[i, :, MARGIN:-MARGIN, MARGIN:-MARGIN].permute(1, 2, 0).numpy())
                axis.set(xticks=[], yticks=[])
                name = NAMES.get(int(classes[i]), f"class {int(classes[i])}")
                axis.set_xlabel(f"{name}, {share[i]:.0%}", size=8.5, weight="bold" if changed else "normal", labelpad=2)
                for spine in axis.spines.values():
                    spine.set(linewidth=3 if changed else 0.5)
    figure.savefig(output, dpi=110)


def _places(photographs: Photographs, name: str) -> list[int]:
    return [photographs.names.index(name)] if name in photographs.names else []


def draw_changes(reports: dict[tuple[str, str], InvarianceReport], scale: float, output: Path) -> None:
    """Draws how many answers each change leaves, and how far it moves the logits."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(source for source, _ in reports))
    some = {name: report for (source, name), report in reports.items() if source == sources[0]}
    rows = [(name, one.element) for name, report in some.items() for one in report.per_element]
    labels = [_label(name, one.name) for name, report in some.items() for one in report.per_element]
    figure = Figure(figsize=(8, 0.24 * len(rows) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, source in enumerate(sources):
        marker = {"fmt": "os"[i], "color": ("0.0", "0.5")[i], "markersize": 5, "linewidth": 1, "capsize": 2}
        ones = [{one.element: one for one in reports[source, name].per_element}[element] for name, element in rows]
        y = torch.arange(len(rows)) + 0.2 * (i - (len(sources) - 1) / 2) * 2
        same = [one.consistency for one in ones]
        moved = [one.normalized_logit_error for one in ones]
        count = reports[source, rows[0][0]].samples
        left.errorbar(
            [100 * e.mean for e in same], y, xerr=[100 * (e.standard_error or 0) for e in same],
            label=f"{count} photographs from {source}", **marker,
        )  # fmt: skip
        right.errorbar([e.mean for e in moved], y, xerr=[e.standard_error or 0 for e in moved], **marker)
    left.set_yticks(range(len(rows)), labels)
    left.invert_yaxis()
    left.set(xlabel="photographs that keep their class, %", xlim=(0, 105))
    right.axvline(scale, color="0.0", linewidth=1, linestyle="--")
    right.text(0.95 * scale, len(rows) - 1, "another photograph", rotation=90, ha="right", va="bottom", size=9)
    right.set(xlabel="normalised logit error (no unit)", xscale="log", xlim=(0.01, 3))
    right.set_xticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
    for axis in (left, right):
        axis.grid(color="0.9", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(output, dpi=110)


def _label(name: str, element: str) -> str:
    return {"turned": f"turned by {element}", "mirrored": "mirrored", "brightness": f"{element} as bright"}.get(
        name, f"moved {element}"
    )


def draw_layers(reports: dict[str, LayersReport], output: Path) -> None:
    """Draws how far each layer is from turning with its input, and from being mirrored with it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.add_subplot()
    styles = {"turned": ("o", "0.0"), "mirrored": ("s", "0.55")}
    for name, report in reports.items():
        marker, grey = styles[name]
        rows = [layer for layer in report.layers if layer.name not in ("input", "output")]
        for kind, line, face in (("equivariance_error", "-", grey), ("invariance_error", ":", "white")):
            points = [(i, e.mean) for i, layer in enumerate(rows) if (e := getattr(layer, kind)) is not None]
            what = "and moved back" if kind == "equivariance_error" else "as they come"
            axis.plot(
                *zip(*points, strict=True), line, marker=marker, color=grey, markerfacecolor=face, markersize=4.5,
                linewidth=1.2, label=f"{name}, outputs compared {what}",
            )  # fmt: skip
        axis.set_xticks(range(len(rows)), [layer.name for layer in rows], rotation=60, ha="right", size=8)
    axis.set(
        ylabel="distance (1: other photograph)", ylim=(0, None), xlabel="layer, from the photograph to the classes"
    )
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(output, dpi=110)


def draw_ties(pools: dict[tuple[str, str], Pooled], plain: InvarianceReport, what: str, output: Path) -> None:
    """Draws what pooling after each layer leaves of the network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.add_subplot()
    for reduction, marker, grey in (("mean", "o", "0.0"), ("max", "s", "0.55")):
        values = [100 * pools[stage, reduction].share for stage in STAGES]
        axis.plot(STAGES, values, marker=marker, color=grey, label=f"pooled by {reduction}: upright and turned")
    scores = [one.consistency if plain.accuracy is None else one.accuracy for one in plain.per_element]
    upright = 100.0 if plain.accuracy is None else 100 * plain.accuracy.mean
    axis.axhline(upright, color="0.0", linewidth=1, linestyle="--", label="not pooled: upright")
    axis.axhline(100 * sum(e.mean for e in scores) / len(scores), color="0.0", linewidth=1, linestyle=":",
                 label="not pooled: turned")  # fmt: skip
    axis.set(xlabel="layer after which the four turns are pooled, from the first to the last", ylabel=f"{what}, %")
    axis.set_ylim(-2, 102)
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.04))
    figure.savefig(output, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Audits, prints, draws, writes the page, and checks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--pictures", type=Path, help="a folder with photographs of yours, in place of the default ones"
    )
    parser.add_argument("--output", type=Path, default=Path("audit_pretrained"), help="the folder to write to")
    parser.add_argument("--saliency", type=int, default=4, help="on how many photographs to make maps (default: 4)")
    args = parser.parse_args(argv)
    needed = [name for name in NEEDS if args.pictures is None or name not in ("foolbox", "skimage", "sklearn")]
    if packages := missing(needed):
        print(f"This example needs packages that are not here: pip install {' '.join(packages)}", file=sys.stderr)
        raise SystemExit(2)
    start = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {what}", flush=True)

    try:
        sources = [folder(args.pictures)] if args.pictures else [labelled(), unlabelled()]
    except ValueError as error:
        parser.error(str(error))
    args.output.mkdir(parents=True, exist_ok=True)
    model = pretrained()
    say(f"read {' and '.join(f'{len(one)} photographs from {one.source}' for one in sources)}")
    main_one, shown = sources[0], sources[-1]
    reports = {(one.source, name): audit(model, one, group) for one in sources for name, group in CHANGES.items()}
    say("audited under turns, mirror, shifts, brightness")
    scale = apart(model, main_one)
    print_changes(reports, scale)

    names = [name for name, _ in model.named_children() if name != "flat"]
    layers = {
        name: measure_layers(model, main_one.batches, group, layers=names)
        for name, group in (("turned", turns), ("mirrored", mirror))
    }
    say("measured the layers")
    for report in layers.values():
        print(f"\n{report}")
    page = audit(model, shown, turns, saliency=SALIENCY, saliency_samples=args.saliency, worst_samples=3)
    page.to_html(args.output / "audit.html", layers=layers["turned"])
    say(f"made saliency maps: SI {page.saliency_similarity}, completeness gap {page.completeness_gap:.0%}")

    plain = reports[main_one.source, "turned"]
    wanted = predicted(model, main_one) if main_one.labels is None else main_one.labels
    what = "photographs that are right" if main_one.labels is not None else "photographs with the class of the original"
    ties = {"untouched": plain}
    for reduction in ("max", "mean"):
        with tie_first_layer(model, turns, reduction=reduction):
            ties[f"first layer pooled, {reduction}"] = audit(model, main_one, turns)
    with replaced(model, "conv", TurnedBack(model.conv)):
        ties["first layer made to turn with its input"] = audit(model, main_one, turns)
    with tie_first_layer(model, turns, "features", "mean"):
        ties["last features pooled, mean"] = audit(model, main_one, turns)
    pools = pool_each(model, main_one, wanted)
    say("tied the first layer, and later ones")
    print_ties(ties, pools, what)

    gallery(model, shown, args.output / "photographs.png")
    draw_changes(reports, scale, args.output / "changes.png")
    draw_layers(layers, args.output / "layers.png")
    draw_ties(pools, plain, what, args.output / "ties.png")
    page.plot_saliency().savefig(args.output / "saliency.png", dpi=80)
    say(f"wrote audit.html and pictures to {args.output}")
    if args.pictures:
        print("Photographs of yours: nothing was checked.")
    else:
        check(reports, layers, ties, pools)
        print("Checked: what the first line of this script claims.")


if __name__ == "__main__":
    main()
