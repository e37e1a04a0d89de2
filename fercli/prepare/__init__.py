"""Records -> prepared store, in parallel; stopped at any moment, the next run goes on and ends with the same bytes.

- ``build``: the run. What is still right is taken over, workers make the rest, one writer appends it.
- ``partial``: a store that is being written, and what earlier runs left, complete or not, by record key.
- ``complete``: the rest of a store's files, meta.json last, and putting all of them in place.
"""

from fercli.prepare.build import Summary, prepare

__all__ = ["Summary", "prepare"]
