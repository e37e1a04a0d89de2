"""The run spec: one typed, strict YAML that drives every command.

`load` reads ``-c FILE``, else ``./fercli.yaml``, else the packaged ``configs/default.yaml``, puts ``--set`` overrides
on top and returns a `Spec`, or raises one `SpecError` that lists every problem with its key path, its value and what is
allowed.

- `schema`: the sections, their defaults and the checks across fields
- `fidelity`: what ``faithful: published`` sets
- `registry`: the names of methods and selection rules
- `load`: finding and reading a spec file, ``--set``, the messages
- `template`: a spec as a file to edit, every key explained (``fercli init``)
- `json_schema`: the JSON Schema for editors; ``python -m fercli.spec.json_schema`` writes it
- `yaml_data`: YAML as plain, bounded data
- `plugins`: methods and readers of the user's own, named ``module:Name``

Nothing here imports torch.
"""

from fercli.spec.load import load, packaged, parse, parse_recorded, to_yaml, up_to_date
from fercli.spec.schema import Adapt, Dataset, Engine, Model, Optimisation, Prepare, Section, Spec

__all__ = [
    "Adapt",
    "Dataset",
    "Engine",
    "Model",
    "Optimisation",
    "Prepare",
    "Section",
    "Spec",
    "load",
    "packaged",
    "parse",
    "parse_recorded",
    "to_yaml",
    "up_to_date",
]
