"""Meanings of numeric labels and class folders: those of the known datasets, or those given by the option codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fercli.datasets.parsing import whole_number
from fercli.datasets.reader import READERS, WrongOption
from fercli.expressions import EXPRESSIONS, is_outside, label_of


def known_codes() -> dict[str, Mapping[int, int | None]]:
    """Return {dataset: its codes} for each dataset that numbers its expressions."""
    return {name: reader.codes for name, reader in READERS.items() if reader.codes}


def code_meanings(codes: str | Mapping[int, str] | None) -> Mapping[int, int | None]:
    """Return the meaning of each number by the option codes: its label, or None if it is outside the seven.

    Raises WrongOption, one line, if the option is neither a dataset's name nor {number: expression}.
    """
    if codes is None:
        return {}
    if isinstance(codes, str):
        known = known_codes()
        if codes not in known:
            raise WrongOption(f"option codes is '{codes}', not one of {', '.join(known)}")
        return known[codes]
    if not isinstance(codes, Mapping):
        raise WrongOption(f"option codes is '{codes}', neither a dataset's name nor {{0: anger, 1: ...}}")
    labels: dict[int, int | None] = {}
    for code, name in codes.items():
        number = None if isinstance(code, bool) else whole_number(str(code))
        if number is None:
            raise WrongOption(
                f"option codes: '{code}' is not an integer (the option maps numbers to names: {{3: happy}})"
            )
        if label_of(str(name)) is None and not is_outside(str(name)):
            raise WrongOption(
                f"option codes: '{name}' (of {code}) is neither an expression ({', '.join(EXPRESSIONS)}) nor a "
                "known label outside the seven (contempt, other, ...)"
            )
        labels[number] = label_of(str(name))
    return labels


def ask_for_codes(numbers: Iterable[int]) -> str:
    """Return a hint on what to do about numeric labels or class folders.

    It lists the code tables of the known datasets: those that contain all of the numbers, or every table if none does.
    """
    wanted, known = set(numbers), known_codes()
    texts: dict[str, list[str]] = {}
    for name, table in known.items():
        if wanted <= set(table) or not any(wanted <= set(other) for other in known.values()):
            said = ", ".join(f"{code} {EXPRESSIONS[label]}" for code, label in table.items() if label is not None)
            texts.setdefault(said, []).append(name)
    tables = "; ".join(f"{' and '.join(names)}: {said}" for said, names in texts.items())
    return f"give their meaning with the option codes, as a dataset's name ({tables}) or as {{1: happy, 2: sad}}"
