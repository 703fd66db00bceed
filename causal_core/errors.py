"""The errors a user can act on. The command line maps them to exit codes; nothing else does."""


class UserError(Exception):
    """Something the user gave cannot work: names what was found, why, and what to do (exit 1)."""


class ConfigError(UserError):
    """The configuration is not valid."""


class ModelError(UserError):
    """The base model cannot be had or cannot be trained with this configuration."""


class UnwritableError(UserError):
    """A directory cannot be written (read-only, full, not permitted)."""


class CheckpointError(UserError):
    """A checkpoint cannot be used; it is refused as a whole."""


class DamagedCheckpointError(CheckpointError):
    """A file of the checkpoint is missing, truncated or altered, or the save never finished."""


class ForeignCheckpointError(CheckpointError):
    """The checkpoint is whole, but of another base model, adapter shape, config or data."""


class NewerFormatError(CheckpointError):
    """The checkpoint was written by a newer version of this program."""


class RunFailedError(Exception):
    """The run itself failed after a valid start (exit 3)."""


class OneWorkerFailedError(RunFailedError):
    """One worker failed where the others wait for it: all of them have to be started again."""


class StorageError(OneWorkerFailedError):
    """A checkpoint could not be written (storage full, read-only or gone)."""


class StorageRefusedError(StorageError, UserError):
    """The file system refused a write in the middle of a run: the user can act on it (exit 1)."""
