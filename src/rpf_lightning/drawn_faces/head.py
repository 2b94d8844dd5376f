"""The head in three dimensions: its surface, its pose and the soft light on it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rpf_lightning.drawn_faces.geometry import Array, xy
from rpf_lightning.drawn_faces.person import Person, Shot

# Right half of the frontal outline: chin, jaw up to the ear (landmarks 8..16), then over the skull.
OUTLINE = np.array(
    [(0, 0.42), (0.056, 0.411), (0.110, 0.384), (0.160, 0.340), (0.206, 0.282), (0.242, 0.21), (0.265, 0.135),
     (0.279, 0.06), (0.286, -0.02), (0.29, -0.10), (0.286, -0.19), (0.262, -0.28), (0.208, -0.36),
     (0.115, -0.42), (0, -0.44)]
)  # fmt: skip
EAR = 8  # index of the ear in OUTLINE
# How much each point of OUTLINE takes part in a wider jaw, a wider chin and a lower chin.
JAW_WEIGHT = np.array([0, 0.2, 0.6, 1, 1, 0.8, 0.4, 0.1, 0, 0, 0, 0, 0, 0, 0])
CHIN_WEIGHT = np.array([0, 1, 0.7, 0.3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
DROP_WEIGHT = np.array([1, 0.96, 0.8, 0.55, 0.3, 0.12, 0.03, 0, 0, 0, 0, 0, 0, 0, 0])
# Depth of the outline (rim) and of the midline by height.
RIM_Y, RIM_Z = np.array(
    [(-0.44, -0.05), (-0.28, -0.03), (-0.1, -0.01), (-0.02, 0.0), (0.135, 0.03), (0.21, 0.06), (0.28, 0.1),
     (0.336, 0.14), (0.381, 0.185), (0.411, 0.225), (0.42, 0.245)]
).T.copy()  # fmt: skip
MID_Y, MID_Z = np.array(
    [(-0.44, 0.03), (-0.36, 0.14), (-0.28, 0.2), (-0.1, 0.26), (-0.03, 0.255), (0.12, 0.27), (0.23, 0.275),
     (0.34, 0.265), (0.42, 0.25)]
).T.copy()  # fmt: skip
ALIGNED_POINT = np.array([0.0, 0.10, 0.25])  # between eyes and mouth: the crop keeps it in place


class Head:
    """The head's surface, its pose and the soft light on it.

    The head is a stack of half ellipses, so every point (x, y) of the face has a depth, and a turned head
    moves its features as a real one does.

    Attributes:
        outline: (15, 2) right half of the frontal outline, see OUTLINE.
    """

    def __init__(self, person: Person, shot: Shot) -> None:
        outline = OUTLINE.copy()
        outline[:, 0] *= person.face_width * (1 + person.jaw * JAW_WEIGHT + person.chin * CHIN_WEIGHT)
        outline[:, 1] += (person.chin_length + 0.035 * shot.mouth_open) * DROP_WEIGHT
        self.outline = outline
        self._spots: list[Array] = []
        self._width_x, self._width_y = outline[::-1].T.copy()
        self._offset = shot.offset + 0.5
        self._sin_yaw, self._cos_yaw = float(np.sin(shot.yaw)), float(np.cos(shot.yaw))
        self._sin_pitch, self._cos_pitch = float(np.sin(shot.pitch)), float(np.cos(shot.pitch))
        sin, cos = np.sin(shot.roll), np.cos(shot.roll)
        self._roll = np.array([[cos, sin], [-sin, cos]])
        self._shift = self._rotate(*ALIGNED_POINT[:, None])[0] - ALIGNED_POINT[:2]

    def _rotate(self, x: Array, y: Array, z: Array) -> Array:
        """(n,) coordinates, turned by yaw and pitch -> (n, 2) x and y."""
        turned = z * self._cos_yaw - x * self._sin_yaw
        return xy(x * self._cos_yaw + z * self._sin_yaw, y * self._cos_pitch + turned * self._sin_pitch)

    def _place(self, x: Array, y: Array, z: Array) -> Array:
        """(n,) face coordinates -> (n, 2) picture coordinates."""
        return (self._rotate(x, y, z) - self._shift) @ self._roll + self._offset

    def _section(self, y: Array) -> tuple[Array, Array, Array]:
        """Half width, depth of the rim and depth range of the head's section at height y."""
        width = np.maximum(np.interp(y, self._width_y, self._width_x), 0.03)
        rim = np.interp(y, RIM_Y, RIM_Z)
        return width, rim, np.interp(y, MID_Y, MID_Z) - rim

    def project(self, points: Array) -> Array:
        """(n, 3) face coordinates -> (n, 2) picture coordinates."""
        return self._place(*points.T)

    def put(self, points: ArrayLike, rise: ArrayLike = 0.0) -> Array:
        """(n, 2) points on the face, ``rise`` above its surface -> (n, 2) in the picture.

        What the turned head hides is moved to the visible rim.
        """
        x, y = np.asarray(points, dtype=np.float64).T
        width, rim, depth = self._section(y)
        limit = width**2 * self._cos_yaw / np.hypot(width * self._cos_yaw, depth * self._sin_yaw)
        bound = np.where(x * self._sin_yaw > 0, limit, width)
        x = np.minimum(np.maximum(x, -bound), bound)
        z = rim + depth * np.sqrt(np.maximum(1 - (x / width) ** 2, 0)) + rise
        return self._place(x, y, z)

    def rim(self, points: ArrayLike, back: float = 0.0) -> Array:
        """(n, 2) points of a frontal outline -> (n, 2) its turned silhouette, ``back`` behind the rim."""
        x, y = np.asarray(points, dtype=np.float64).T
        _, rim, depth = self._section(y)
        run = np.hypot(x * self._cos_yaw, depth * self._sin_yaw) + 1e-9
        far = x * self._sin_yaw > 0
        side = np.where(far, x * np.abs(x) * self._cos_yaw / run, x)
        z = rim + np.where(far, depth**2 * abs(self._sin_yaw) / run, -back)
        return self._place(side, y, z)

    def facing(self, points: Array) -> Array:
        """(n, 2) points on the face -> (n,) 0 on the hidden side .. 1 towards the camera."""
        x, y = points.T
        width, _, depth = self._section(y)
        u = np.clip(x / width, -1, 1)
        normal_x, normal_z = u / width, np.sqrt(1 - u**2) / depth
        toward = normal_z * self._cos_yaw - normal_x * self._sin_yaw
        return np.clip(3 * toward / np.hypot(normal_x, normal_z), 0, 1)

    def spots(self, points: ArrayLike, sigma: ArrayLike, weight: ArrayLike, rise: ArrayLike = 0.0) -> None:
        """Adds soft spots on the face.

        Args:
            points: (n, 2) face coordinates.
            sigma: Broadcastable to (n, 2), in sides.
            weight: Broadcastable to (n, 3), log gain in the middle; below 0 darkens.
            rise: Broadcastable to (n,), height above the surface.
        """
        where = np.asarray(points, dtype=np.float64)
        spots = np.empty((len(where), 8))
        spots[:, :2] = where
        spots[:, 2:4] = sigma
        spots[:, 4:7] = weight
        spots[:, 7] = rise
        self._spots.append(spots)

    def soft_light(self) -> Array:
        """(n, 7) all spots in the picture: x, y, sigma x, sigma y, log weights of R, G, B."""
        spots = np.concatenate(self._spots)
        spots[:, 4:7] *= self.facing(spots[:, :2])[:, None]
        spots[:, :2] = self.put(spots[:, :2], spots[:, 7])
        return spots[:, :7]
