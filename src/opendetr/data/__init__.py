"""Data sets, readers and the batches made of them."""
