"""The only folder that imports fairseq: it registers the task, the model and the criterion, and holds no algorithm."""

from moe_nmt.fairseq_plugin import compat, criterion, model, task  # noqa: F401

compat.install()
