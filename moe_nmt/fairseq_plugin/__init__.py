"""The only folder that imports fairseq: it registers task, model, criterion and optimizer, and holds no algorithm."""

from moe_nmt.fairseq_plugin import compat, criterion, launch, model, optimizer, saving, sharded, task  # noqa: F401

compat.install()
saving.install()
sharded.install()
launch.install()
