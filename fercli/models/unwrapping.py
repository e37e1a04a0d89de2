"""Finds the network's state in a checkpoint, whatever its keys and prefixes.

Trainers store a state under their own key (``model_state_dict``, ``state_dict``, ``model``, ...), sometimes several
levels deep. Module wrappers add prefixes to its names (``module.``, ``_orig_mod.``, ``model.``, ...). A network is
recognised by its tensors' names (`fercli.models.kinds.kind_of`), never by the key that holds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from fercli.models.kinds import KINDS, kind_of
from fercli.models.reading import is_plain, shown, some

#: The search looks this many levels deep.
_DEEPEST = 4
#: Parts of names that DataParallel, torch.compile, FSDP and activation checkpointing insert anywhere in a name.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: What torch.optim.swa_utils.AveragedModel stores with the weights: the number of averaged models.
_COUNTERS = frozenset({"n_averaged"})
_KNOWN = "fercli reads its own, AGLRLS, AGRA, face.evoLVe and torchvision MobileNetV2 files"


class Unwrapped(NamedTuple):
    """A network's state.

    Attributes:
        kind: a key of `fercli.models.kinds.KINDS`.
        state: its tensors by name, without prefixes.
        holder: the mapping that has the state as an entry; empty if the state is the whole file.
    """

    kind: str
    state: dict[str, Tensor]
    holder: Mapping[str, Any]


def unwrap(document: Mapping[str, Any]) -> Unwrapped:
    """Return the one network in a checkpoint.

    Raises:
        ValueError: there is no network of a known kind, or there are several. The message says what the file holds.
    """
    found, unknown = {}, {}
    for place, state, holder in _states(document, set()):
        named = _without_prefixes(state, place)
        kind = kind_of(named, place[-1] if place else None)
        if kind is None:
            unknown[place] = state
        else:
            found[place] = Unwrapped(kind, named, holder)
    if ("network",) in found and document.get("kind") == "fercli":
        return found["network",]  # a method's own state may look like a network too
    if len(found) > 1:
        held = ", ".join(f"{_told(place)}: {KINDS[one.kind].title}" for place, one in found.items())
        raise ValueError(f"contains {len(found)} networks ({held}); save the one you want in a separate file")
    if found:
        return next(iter(found.values()))
    if unknown:
        held = "; ".join(_described(place, state) for place, state in unknown.items())
        raise ValueError(f"{held}; {_KNOWN}")
    strange = list(islice(_strange(document), 1000))
    what = f"has entries that are not plain tensors: {some(strange)}" if strange else "is empty"
    raise ValueError(f"is not a checkpoint of a known kind: its state {what}; {_KNOWN}")


def _states(
    document: Mapping[str, Any], seen: set[int], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Tensor], Mapping[str, Any]]]:
    """Yield (place, state, holder) for every mapping that holds only plain tensors by name."""
    if document and all(isinstance(key, str) and is_plain(value) for key, value in document.items()):
        yield place, document, {}
    elif len(place) < _DEEPEST and id(document) not in seen:
        seen.add(id(document))  # a small file can reference one mapping a million times
        for key, value in document.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                for below, state, holder in _states(value, seen, (*place, key)):
                    yield below, state, document if len(below) == len(place) + 1 else holder


def _strange(document: Mapping[str, Any], depth: int = 1) -> Iterator[str]:
    """Yield the names of entries that are not plain tensors; for a mapping, the names of its entries instead."""
    for key, value in document.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth < _DEEPEST:
            yield from (f"{shown(key)}.{below}" for below in _strange(value, depth + 1))
        elif not (isinstance(key, str) and is_plain(value)):
            yield shown(key)


def _without_prefixes(state: Mapping[str, Tensor], place: tuple[str, ...]) -> dict[str, Tensor]:
    """Remove wrappers from the names, then prefixes that all names share, until the kind is recognised.

    If two names would become the same, all names stay unchanged.
    """
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if key not in _COUNTERS:
            named[".".join(part for part in key.split(".") if part not in _WRAPPERS)] = value
    if len(named) + len(_COUNTERS & state.keys()) != len(state):
        return dict(state)
    while kind_of(named, place[-1] if place else None) is None:
        shared = {key.partition(".")[0] for key in named}
        if len(shared) != 1 or not all("." in key for key in named):
            break
        named = {key.partition(".")[2]: value for key, value in named.items()}
    return named


def _described(place: tuple[str, ...], state: Mapping[str, Tensor]) -> str:
    groups = Counter(f"{key.partition('.')[0]}.*" if "." in key else key for key in state)
    names = some(f"{name} ({count})" if count > 1 else name for name, count in groups.items())
    under = f" in {_told(place)}" if place else ""
    return f"{len(state)} tensors{under} with unknown names ({names})"


def _told(place: tuple[str, ...]) -> str:
    return shown(".".join(place)) if place else "the file itself"
