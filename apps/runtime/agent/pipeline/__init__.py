"""Running a verified bundle over records: from a file or a local HTTP port, to a file or a URL."""

from apps.runtime.agent.limits import ActivationError
from apps.runtime.agent.pipeline.run import Pipeline, settle

__all__ = ["ActivationError", "Pipeline", "settle"]
