"""The networks: backbones, local crop nets, the global-local network, and other people's weights."""

from fercli.models.global_local import HEADS, GlobalLocal, Output, build_network
from fercli.models.local import FEATURE_SIZE

__all__ = ["FEATURE_SIZE", "HEADS", "GlobalLocal", "Output", "build_network"]
