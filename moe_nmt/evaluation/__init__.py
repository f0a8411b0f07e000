"""Scores of translations, by direction and by size of its training corpus; needs neither torch nor fairseq."""
