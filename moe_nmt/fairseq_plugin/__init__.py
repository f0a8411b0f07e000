"""The only folder that imports fairseq: it registers the task, the model and the criterion, and holds no algorithm."""

from moe_nmt.fairseq_plugin import compat

compat.install()

from moe_nmt.fairseq_plugin import criterion, model, task  # noqa: F401
