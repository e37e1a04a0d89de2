"""Records -> prepared store, in parallel. If it is stopped, the next run resumes and ends with the same bytes.

- `build`: the run: valid faces are reused, workers compute the others, and one writer appends them;
- `partial`: a store that is being written, and the results of earlier runs, complete or not, by record key;
- `complete`: writes the rest of a store's files, meta.json last, and moves all of them into place;
- `from_spec`: datasets of a run spec, listed and prepared;
- `contact_sheet`: the overview image in a store;
- `verify`: a full check of a store;
- `audit`: the quality report next to the stores: detection results and duplicate faces.
"""

from fercli.prepare.build import Summary, prepare

__all__ = ["Summary", "prepare"]
