"""Records -> prepared store, in parallel; stopped at any moment, the next run goes on and ends with the same bytes.

- `build`: the run: faces that are still valid are reused, workers compute the others, and one writer appends them;
- `partial`: a store that is being written, and what earlier runs left, complete or not, by record key;
- `complete`: the rest of a store's files, meta.json last, and moving all of them into place;
- `from_spec`: datasets of a run spec, listed and prepared;
- `contact_sheet`: the image beside a store;
- `verify`: a store, checked from end to end;
- `audit`: the quality report beside the stores: what was found, and duplicate faces.
"""

from fercli.prepare.build import Summary, prepare

__all__ = ["Summary", "prepare"]
