"""Procedural faces: shaded drawings with the seven expressions, in domains that differ as datasets do.

In the demo and the tests they replace photographs that may not be redistributed. Results on them show that the pipeline
works, not how well it recognises real people's expressions. Every face is a pure function of its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from joblib import Parallel, delayed

from fercli.expressions import NUM_EXPRESSIONS
from fercli.faces.align import transform
from fercli.synthetic.action_units import draw_units
from fercli.synthetic.anatomy import Identity, build
from fercli.synthetic.domains import LAB, STUDIO, Domain
from fercli.synthetic.drawing import Canvas, paint
from fercli.synthetic.lighting import light_up

__all__ = ["LAB", "STUDIO", "Domain", "Face", "render", "sample"]


@dataclass(frozen=True)
class Face:
    """One rendered face.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        landmarks: float32 [5, 2], (x, y) pixels (centres at integers): image-left eye, image-right eye (each the
            middle of its corners), nose tip, image-left and image-right mouth corner.
        label: 0..6, in the order of `fercli.expressions.EXPRESSIONS`: the requested expression, however weak it is.
        identity: the seed of the person.
        box: (left, top, right, bottom) around the face, brow to chin and a little more, within the image.
    """

    image: np.ndarray
    landmarks: np.ndarray
    label: int
    identity: int
    box: tuple[float, float, float, float]


def render(domain: Domain, identity_seed: int, expression: int, image_seed: int) -> Face:
    """Return one face of a domain: the person of `identity_seed` with `expression` 0..6 in the image of `image_seed`.

    The same arguments give the same pixels, in any order, thread or process. Raises ValueError for an expression
    outside 0..6.
    """
    if not 0 <= expression < NUM_EXPRESSIONS:
        raise ValueError(f"expression {expression} is not one of 0..{NUM_EXPRESSIONS - 1}")
    seeds = np.random.SeedSequence([identity_seed, expression, image_seed]).spawn(4)
    muscles, scene, paints, sensor = (np.random.default_rng(seed) for seed in seeds)
    person = Identity.of(identity_seed)
    units = draw_units(expression, muscles, domain)
    roll, yaw, pitch = np.clip(scene.standard_normal(3), -2.2, 2.2) * (domain.roll, domain.yaw, domain.pitch)
    body = build(person, person.factors(domain.proportions), units, yaw, pitch, muscles)
    matrix = _placement(domain, body.outline, roll, scene)
    # The image is drawn larger than its final size. Pixel centres are at integers in both.
    fine = matrix * domain.supersample
    fine[:, 2] += (domain.supersample - 1) / 2
    backdrop = _background(domain, scene)
    canvas = Canvas(backdrop, fine)
    clothes = np.clip(scene.uniform(35, 190) + scene.normal(0, 30, 3), 10, 240)
    paint(canvas, body, person, domain, clothes, paints)
    # Light is smooth, so it can be added after the image is reduced to its final size.
    picture, covered = (
        cv2.resize(p, domain.size, interpolation=cv2.INTER_AREA) for p in (canvas.picture, canvas.covered)
    )
    image = _photograph(light_up(picture, covered, matrix, body, domain, scene), domain, sensor)
    landmarks = transform(matrix, body.landmarks)
    return Face(image, landmarks.astype(np.float32), expression, identity_seed, _box(body, matrix, domain.size))


def sample(
    domain: Domain,
    count: int,
    seed: int,
    identities: int | Sequence[int] = 40,
    workers: int = 1,
) -> Iterator[Face]:
    """Yield `count` faces of a domain in random order, the same for any number of workers.

    The seven expressions are equally frequent, to within one face.

    Args:
        seed: seed for the choice of people, expressions and images.
        identities: the people's seeds, or the number of people (then their seeds are 0, 1, ...). They take turns.
        workers: number of processes that render (joblib); 1 renders in this process, when a face is requested.

    Raises:
        ValueError: there are no identities.
    """
    people = np.arange(identities) if isinstance(identities, int) else np.asarray(list(identities))
    if len(people) == 0:
        raise ValueError("sample needs at least one identity")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xFACE]))
    counts = np.full(NUM_EXPRESSIONS, count // NUM_EXPRESSIONS)
    counts[np.argsort(rng.random(NUM_EXPRESSIONS))[: count % NUM_EXPRESSIONS]] += 1
    labels = rng.permutation(np.repeat(np.arange(NUM_EXPRESSIONS), counts))
    turns = np.concatenate([rng.permutation(people) for _ in range(-(-count // len(people)))] or [people])[:count]
    photographs = rng.integers(0, 2**31, count)
    jobs = ((domain, *one) for one in zip(turns.tolist(), labels.tolist(), photographs.tolist(), strict=True))
    if workers == 1:
        return (render(*job) for job in jobs)
    return Parallel(n_jobs=workers, batch_size=16, return_as="generator")(delayed(render)(*job) for job in jobs)


def _placement(domain: Domain, outline: np.ndarray, roll: float, rng: np.random.Generator) -> np.ndarray:
    """Return the similarity [2, 3] from face units to pixels that puts the face's middle near the image's middle."""
    width, height = domain.size
    scale = rng.uniform(*domain.face_width) * width / np.ptp(outline[:, 0])
    angle = np.deg2rad(roll)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([(outline[:, 0].max() + outline[:, 0].min()) / 2, 0.35])
    target = (np.array([width, height]) - 1) / 2 + rng.uniform(-1, 1, 2) * domain.wander * np.array([width, height])
    return np.hstack([turn, (target - turn @ middle)[:, None]])


def _background(domain: Domain, rng: np.random.Generator) -> np.ndarray:
    """Return a backdrop with a falloff of light, and out-of-focus blocks of colour and people without features."""
    width, height = (side * domain.supersample for side in domain.size)
    small_w, small_h = 96, max(2, round(96 * height / width))
    level, slant = rng.uniform(*domain.background), rng.normal(0, 0.12, 2)
    ramp = 1 + slant[0] * np.linspace(-1, 1, small_w)[None] + slant[1] * np.linspace(-1, 1, small_h)[:, None]
    colour = level * (1 + rng.normal(0, 0.09, 3))
    picture = np.clip(ramp[..., None] * colour, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(domain.clutter // 2, domain.clutter + 1)) if domain.clutter else 0):
        x, y = (int(v) for v in rng.integers(0, (small_w, small_h)))
        shade = [float(c) for c in np.clip(rng.uniform(25, 210) + rng.normal(0, 28, 3), 0, 255)]
        if rng.random() < 0.5:
            w, h = (int(v) for v in rng.integers(6, 34, 2))
            cv2.rectangle(picture, (x - w // 2, y - h // 2), (x + w // 2, y + h // 2), shade, -1)
        else:
            r = int(rng.integers(6, 11))
            cv2.ellipse(picture, (x, y + 3 * r), (2 * r, 2 * r), 0, 0, 360, shade, -1)
            cv2.ellipse(picture, (x, y), (r, round(1.3 * r)), 0, 0, 360, [0.7 * c + 40 for c in shade], -1)
    picture = cv2.GaussianBlur(picture, (0, 0), 1.6)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)


def _photograph(scene: np.ndarray, domain: Domain, rng: np.random.Generator) -> np.ndarray:
    """Return the finished uint8 image of a scene float32 [H, W, 3]: lens, film, sensor, file, in this order."""
    image = cv2.cvtColor(scene, cv2.COLOR_RGB2GRAY)
    if not domain.grey:
        image = image[..., None] + np.float32(rng.uniform(*domain.saturation)) * (scene - image[..., None])
    blur = rng.uniform(*domain.blur)
    if blur > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    contrast, gamma, brightness = (rng.uniform(*r) for r in (domain.contrast, domain.gamma, domain.brightness))
    curve = ((np.arange(256) / 255.0) ** gamma * 255 - 128) * contrast + 128 + brightness
    image = cv2.LUT(cv2.convertScaleAbs(np.maximum(image, 0)), curve.astype(np.float32))
    # Grain in brightness only: colour grain costs three times as much, and image files discard most of it.
    grain = rng.standard_normal(image.shape[:2], dtype=np.float32) * np.float32(rng.uniform(*domain.noise))
    image = cv2.convertScaleAbs(np.maximum(image + (grain if domain.grey else grain[..., None]), 0))
    if domain.jpeg is not None:
        quality = int(rng.integers(domain.jpeg[0], domain.jpeg[1] + 1))
        flag = cv2.IMREAD_GRAYSCALE if domain.grey else cv2.IMREAD_COLOR
        image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], flag)
    return np.repeat(image[..., None], 3, axis=2) if domain.grey else image


def _box(body, matrix: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    pixels = transform(matrix, body.outline[body.outline[:, 1] > -0.75])
    left, top = np.maximum(pixels.min(axis=0), 0).tolist()
    right, bottom = np.minimum(pixels.max(axis=0), np.array(size) - 1).tolist()
    return left, top, right, bottom
