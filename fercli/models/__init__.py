"""The networks: backbones, local crop nets, the global-local network, and other people's weights."""

from fercli.models.build import build_network
from fercli.models.global_local import GlobalLocal, Output
from fercli.models.heads import FEATURE_SIZE, HEADS

__all__ = ["FEATURE_SIZE", "HEADS", "GlobalLocal", "Output", "build_network"]
