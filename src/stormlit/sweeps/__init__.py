"""Grids of runs: variants of one configuration, on environments and seeds, each cell of it an ordinary run."""
