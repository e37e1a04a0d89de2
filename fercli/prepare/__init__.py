"""Records -> prepared store, in parallel; stopped at any moment, the next run goes on and ends with the same bytes.

build.py     the run: what is still right is taken over, the rest made by workers, one writer appends it
partial.py   a store that is being written: its arrays and the journal of its records
previous.py  what earlier runs left, complete or not, looked up by record key
complete.py  the rest of a store's files, meta.json last, and putting all of them in place
"""

from fercli.prepare.build import Summary, prepare

__all__ = ["Summary", "prepare"]
