"""Tools for datasets: check, fix, convert, split."""
