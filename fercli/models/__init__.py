"""The networks, and the files that hold their weights.

- `global_local`: the global-local network: seven heads over one global and five local features;
- `build`: the network of a spec's ``model`` section;
- `heads`: names and sizes of regions, heads and features, without torch;
- `backbones`: IR-50, IR-18, the two MobileNetV2 and the small ones;
- `local`: windows, crop nets and patch stems;
- `grouped`: five crop nets run as one;
- `norms`: batch norms without a batch counter;
- `prelu`: a PReLU with a cheap gradient on a CPU;
- `weights`: loads checkpoints, ours and others', into our network;
- `kinds`: the known kinds of checkpoint;
- `names`: tensor names, ours and those of other projects;
- `unwrapping`: finds a network's state in a checkpoint;
- `reading`: reads checkpoint files as data, never as code;
- `model_file`: a whole model in one safetensors file.
"""

from fercli.models.build import build_network
from fercli.models.global_local import GlobalLocal, Output
from fercli.models.heads import FEATURE_SIZE, HEADS

__all__ = ["FEATURE_SIZE", "HEADS", "GlobalLocal", "Output", "build_network"]
