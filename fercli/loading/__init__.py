"""From prepared stores to batches, step by step.

- `batches`: step number to `Batch`: source faces with their labels, target faces without;
- `face_dataset`: selected faces of one or several stores, as tensors;
- `held_out`: which labelled faces of a source are used for training, and which to choose the epoch;
- `samplers`: which faces come next, and seeds;
- `augment`: plain, weak and strong views;
- `randaugment`: the operations of strong views;
- `released_randaugment`: the operations in the released code of AGLRLS;
- `placement`: where faces are stored (memory-mapped, or cached on the device), and the prefetcher.
"""
