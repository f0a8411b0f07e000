"""Sparse mixture-of-experts models for multilingual machine translation, as a plugin for fairseq.

fairseq's commands import this package for `--user-dir`; the tasks, models and criterions are registered then.
Without fairseq in the process, importing it (or `moe_nmt.moe`, the core) pulls in no fairseq.
"""

import sys

__version__ = "0.1.0"

if "fairseq" in sys.modules:
    import moe_nmt.fairseq_plugin  # noqa: F401
