"""Prepared stores to batches, step by step.

- `batches`: step number to `Batch`: source faces with their labels, target faces without;
- `face_dataset`: chosen faces of one or several stores, as tensors;
- `held_out`: which labelled faces of a source are trained on, and which choose the epoch;
- `samplers`: which faces come next, seeds, and evenly spaced subsamples;
- `augment`: plain, weak and strong views;
- `randaugment`: the operations of strong views;
- `released_randaugment`: those of the released code of AGLRLS;
- `placement`: where faces wait: memory-mapped, or cached on the device; the prefetcher.
"""
