"""Claims of papers, tried out in the tiny world: `mmalign reproduce NAME`."""
