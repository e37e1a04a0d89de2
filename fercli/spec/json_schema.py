"""The run spec as a JSON Schema, with which editors complete keys and check values as the user types.

It is generated from the same classes and docstrings as the spec itself. This command writes the file in the package::

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
    """Path of the schema in the package."""
    return config_folder() / "spec.schema.json"


def schema() -> dict[str, Any]:
    """The schema of `Spec` as written in a file: shorthands, such as one name instead of a list, are allowed."""
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
