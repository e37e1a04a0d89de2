"""The run spec as a JSON Schema, from which editors complete its keys and check its values while one types.

It is made of the same classes and words as the spec itself. The file in the package is written by::

    python -m fercli.spec.json_schema
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fercli.files import write_atomically
from fercli.spec import Spec
from fercli.spec.load import config_folder
from fercli.spec.template import plain


def schema_file() -> Path:
    """The schema in the package."""
    return config_folder() / "spec.schema.json"


def schema() -> dict[str, Any]:
    """The schema of `Spec`, as what may be written in a file: shortcuts such as one name for a list are allowed."""
    made = Spec.model_json_schema(mode="validation")
    for section in (made, *made["$defs"].values()):
        section.pop("title", None)
        section["description"] = plain(section["description"])
        for value in section["properties"].values():
            value.pop("title", None)
            value["description"] = plain(value["description"])
    first = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fercli run spec"}
    return {**first, **made}


def main() -> None:
    """Write the file in the package."""
    write_atomically(schema_file(), (json.dumps(schema(), indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
