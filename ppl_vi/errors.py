"""What `fit` raises when a model, a guide or the data can't be used as they were given."""

__all__ = ["CheckpointError", "CompileError", "DataError", "GuideError", "ModelError", "RanksError"]


class ModelError(ValueError):
    """The model can't be fitted as it is written; the message names the site and the remedy."""


class GuideError(ValueError):
    """The guide doesn't fit the model; the message names the site and the remedy."""


class DataError(ValueError):
    """The data can't be used as they are; the message names the leaf and the remedy."""


class CompileError(Exception):
    """A step cannot be captured or compiled; the message says which line, site or operation why."""


class ProgramChangedError(CompileError):
    """The programs no longer do what was captured of them, so that some steps may be wrong."""


class RanksError(RuntimeError):
    """Another process of the fit failed or ended; the message says which, and why, if it is known."""


class CheckpointError(ValueError):
    """A file of saved state cannot be used; the message says why and what to do."""
