"""How does a figure look, and how does it become a picture for light and dark pages?"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from invreg.audit.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, SOFT, _GRID, PAPER = "#1a1a1a", "#555555", "#d9d9d9", "#ffffff"

FIRST, SECOND, THIRD, FILL = "#12507b", "#c2410c", "#3f7d20", "#9cc3de"

KEEP = "keep"
"""Mark of what keeps its colour when a figure is darkened: it lies on a picture."""

NAMED: dict[str, Any] = {"parse_math": False}
"""For texts that hold names: a dollar sign in a name is no formula."""


def png(figure: Figure, *, resolution: int = 150) -> bytes:
    """A figure as a picture in PNG."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a name in a script the font lacks
        figure.savefig(out, format="png", dpi=resolution, facecolor=figure.get_facecolor())
    return out.getvalue()


def light_and_dark(figure: Figure) -> tuple[bytes, bytes]:
    """A figure as two pictures in PNG, for a light and for a dark page."""
    light = png(figure)
    figure.set_layout_engine("none")  # it stands where it stands
    darken(figure)
    return light, png(figure)


def darken(figure: Figure) -> None:
    """Turns a figure that was drawn dark on white into one that is light on black; pictures stay as they are."""
    from matplotlib.artist import Artist
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.draw_without_rendering()  # makes the ticks
    coloured: dict[type[Artist], tuple[str, ...]] = {
        Text: ("color",),
        Line2D: ("color", "markerfacecolor", "markeredgecolor"),
        Patch: ("facecolor", "edgecolor"),
        Collection: ("facecolor", "edgecolor"),
    }
    every = {id(artist): artist for artist in figure.findobj(Artist)}  # some are found twice
    for artist in every.values():
        parts = next((parts for kind, parts in coloured.items() if isinstance(artist, kind)), ())
        if artist.get_gid() == KEEP or getattr(artist, "get_array", lambda: None)() is not None:
            continue
        colours = {part: getattr(artist, f"get_{part}")() for part in parts}
        for part, colour in colours.items():
            getattr(artist, f"set_{part}")(_inverted(colour))


def _inverted(colour: Any) -> Any:
    """The colours of the same hue whose lightness is the opposite, a little above black."""
    import colorsys

    from matplotlib.colors import to_rgba_array

    rgba = to_rgba_array(colour)
    if not len(rgba):
        return colour
    for row in rgba:
        hue, lightness, saturation = colorsys.rgb_to_hls(*row[:3])
        row[:3] = colorsys.hls_to_rgb(hue, 0.085 + 0.875 * (1 - lightness), saturation)
    single = len(rgba) == 1 and not (isinstance(colour, np.ndarray) and colour.ndim == 2)
    return tuple(rgba[0]) if single else rgba


def with_error(value: Estimate) -> str:
    """An estimate in few digits."""
    return in_digits(value.mean, 4) + (
        "" if value.standard_error is None else f" ± {in_digits(value.standard_error, 2)}"
    )


def in_digits(value: float, digits: int) -> str:
    """A number rounded to so many digits, without an exponent unless it is very large or small."""
    return f"{float(f'{value:.{digits}g}'):g}"


def shortened(name: str, most: int = 24) -> str:
    """A name on one line that is cut in its middle if it is long: names that differ often do so at an end."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def gridded(axis: Axes, grid: str) -> None:
    """Two sides, pale lines along the values, small numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(SOFT)
    axis.grid(axis="y" if grid == "y" else "x", color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5, colors=INK)
    if len(axis.get_xticklabels()) > 14 and grid == "y":
        axis.tick_params(axis="x", labelsize=7.5)


def frameless(axis: Axes) -> None:
    """Takes the frame and the tick marks away, as bars and heat maps need none."""
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=8.5, colors=INK)


def framed(axis: Axes) -> None:
    """Gives a picture a thin frame."""
    axis.spines[:].set_color(_GRID)
    axis.set_facecolor(PAPER)
