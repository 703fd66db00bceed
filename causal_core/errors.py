"""The errors a user can act on. The command line maps them to exit codes; nothing else does."""


class UserError(Exception):
    """Something the user gave cannot work: names what was found, why, and what to do (exit 1)."""


class ConfigError(UserError):
    """The configuration is not valid."""


class ModelError(UserError):
    """The base model cannot be had or cannot be trained with this configuration."""


class CheckpointError(UserError):
    """A checkpoint is damaged, foreign or of another run; it is refused as a whole."""


class RunFailedError(Exception):
    """The run itself failed after a valid start (exit 3)."""
