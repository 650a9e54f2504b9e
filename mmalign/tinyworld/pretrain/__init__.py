"""How the shipped tiny models were made: `python -m mmalign.tinyworld.pretrain NAME`."""
