"""Scores of translations and reports on trainings, by direction and size of corpus; needs neither torch nor fairseq."""
