"""The run spec: one typed, strict YAML that drives every command.

`load` reads ``-c FILE``, else ``./fercli.yaml``, else the packaged ``configs/default.yaml``. It applies the ``--set``
overrides and returns a `Spec`, or raises one `SpecError` that lists every problem with its key path, its value and the
allowed values.

- `schema`: the sections, their defaults and the checks across fields
- `fidelity`: what ``faithful: published`` sets
- `registry`: the names of methods and selection rules
- `load`: finding and reading a spec file, ``--set``, error messages
- `template`: a spec as a file to edit, with every key explained (``fercli init``)
- `json_schema`: the JSON Schema for editors; ``python -m fercli.spec.json_schema`` writes it
- `yaml_data`: YAML as plain, bounded data
- `plugins`: the user's own methods and readers, named ``module:Name``

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
