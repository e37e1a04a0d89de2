"""The names and sizes of the network's parts: five regions, seven heads, six features."""

from __future__ import annotations

#: The regions in the order of the landmarks; left and right are as seen in the image.
REGIONS: tuple[str, ...] = ("left-eye", "right-eye", "nose", "left-mouth", "right-mouth")

#: Length of each of the six features (one global, five local).
FEATURE_SIZE = 64
#: The seven heads, in the order of every array of heads in this project.
HEADS: tuple[str, ...] = ("global", *REGIONS, "fused")
#: One global feature and one local feature per region.
NUM_FEATURES = 1 + len(REGIONS)
