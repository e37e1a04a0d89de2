"""The networks, and files that hold their weights.

- `global_local`: the global-local network: seven heads over one global and five local features;
- `build`: the network of a spec's ``model`` section;
- `heads`: names and sizes of regions, heads and features, without torch;
- `backbones`: IR-50, IR-18, the two MobileNetV2 and the small ones;
- `local`: windows, crop nets and patch stems;
- `grouped`: five crop nets run as one;
- `norms`: batch norms that count no batches;
- `prelu`: a PReLU whose gradient is cheap on a CPU;
- `weights`: other people's checkpoints into our network;
- `kinds`: which kinds of checkpoint are known;
- `names`: names of tensors here and elsewhere;
- `unwrapping`: finds a network's state in a checkpoint;
- `reading`: files as data, never as code;
- `model_file`: a whole model in one safetensors file.
"""

from fercli.models.build import build_network
from fercli.models.global_local import GlobalLocal, Output
from fercli.models.heads import FEATURE_SIZE, HEADS

__all__ = ["FEATURE_SIZE", "HEADS", "GlobalLocal", "Output", "build_network"]
