"""Penstock runs large language models over data sets and serves them, on one shared engine.

Importing this package loads nothing: the first use of a name below imports it.
"""

from penstock import lazy

__version__ = "0.1.0"

lazy.RUNTIME_ENGINES["local"] = "penstock.serve.models.replicated_engine:ReplicatedEngine"
lazy.RUNTIME_ENGINES["ray"] = "penstock.ray.job_engine:RayEngine"
lazy.RUNTIME_SERVERS["ray"] = "penstock.ray.deployments:RayHosts"
lazy.RUNTIME_DATASETS["ray"] = "penstock.ray.data:process_dataset"

# Type checkers know this name; importing typing takes longer than importing this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from penstock.batch.job.job import Job as Job, arun as arun, run as run
    from penstock.errors import (
        ConfigError as ConfigError,
        MissingExtraError as MissingExtraError,
        PenstockError as PenstockError,
    )
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.batch.job.job": ("Job", "arun", "run"),
            "penstock.errors": ("ConfigError", "MissingExtraError", "PenstockError"),
        },
        eager=("__version__",),
    )
