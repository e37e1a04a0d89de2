"""Is this machine ready for fercli and for a run spec, and what is missing?

- `checks`: all checks in order, and those of the machine, the spec and its data
- `software`: checks of Python and the libraries, advice for libraries that cannot be loaded, and the type `Finding`

`software` needs only the standard library, so that it can report whatever else is broken.
"""
