"""Pictures of one coloured shape, and questions about them whose answers are known.

Used to pretrain the tiny Aria and to draw the visual task of the demo. Knows nothing of models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 40),
    "orange": (245, 130, 20),
    "yellow": (245, 215, 40),
    "green": (30, 150, 60),
    "blue": (35, 70, 210),
    "purple": (120, 40, 160),
}
WARM = ("red", "orange", "yellow")
"""The colours called warm in the demo's task; the others are cool. Pretraining never says either word."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (150, 150, 150),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "ring", "bar", "pillar")
"""A disc, a hollow disc, and oblongs that lie or stand."""
PLACES = ("left", "middle", "right")


@dataclass(frozen=True)
class Scene:
    """What is in one picture. `radius` and `centre` are fractions of the picture's side."""

    colour: str
    shape: str
    background: str
    place: str
    centre: tuple[float, float]
    radius: float
    side: int

    @property
    def questions(self) -> list[tuple[str, str]]:
        """Question and answer pairs that pretraining uses."""
        return [
            ("What colour is the shape?", self.colour),
            ("What shape is it?", self.shape),
            ("Where is the shape?", self.place),
            ("What colour is the background?", self.background),
            ("Describe the picture.", f"A {self.colour} {self.shape} on a {self.background} background."),
        ]

    @property
    def warmth(self) -> str:
        """`warm` or `cool`, by colour alone."""
        return "warm" if self.colour in WARM else "cool"


def sample_scene(rng: random.Random, colour: str | None = None) -> Scene:
    """Draw the content of a scene from `rng`; `colour` fixes the shape's colour."""
    place = rng.choice(PLACES)
    third = PLACES.index(place)
    x = 0.22 + 0.28 * third + rng.uniform(-0.04, 0.04)
    return Scene(
        colour=colour or rng.choice(list(COLOURS)),
        shape=rng.choice(SHAPES),
        background=rng.choice(list(BACKGROUNDS)),
        place=place,
        centre=(x, rng.uniform(0.47, 0.53)),
        radius=rng.uniform(0.13, 0.17),
        side=rng.choice((160, 200, 240)),
    )


def draw_scene(scene: Scene) -> Image.Image:
    """RGB picture of `scene`, `scene.side` pixels on each side."""
    picture = Image.new("RGB", (scene.side, scene.side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(picture)
    fill = COLOURS[scene.colour]
    if scene.shape == "circle":
        pen.ellipse(_box(scene, 1, 1), fill=fill)
    elif scene.shape == "ring":
        pen.ellipse(_box(scene, 1.2, 1.2), fill=fill)
        pen.ellipse(_box(scene, 0.75, 0.75), fill=BACKGROUNDS[scene.background])
    elif scene.shape == "bar":
        pen.rectangle(_box(scene, 1.25, 0.35), fill=fill)
    else:
        pen.rectangle(_box(scene, 0.35, 1.6), fill=fill)
    return picture


def _box(scene: Scene, wide: float, high: float) -> list[float]:
    """Corners in pixels of a box around the centre, `wide` and `high` times the radius to each side."""
    (x, y), r = scene.centre, scene.radius
    corners = (x - wide * r, y - high * r, x + wide * r, y + high * r)
    return [corner * scene.side for corner in corners]
