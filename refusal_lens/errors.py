"""Exceptions, one class per kind of fix.

Every message names the value that was found and what to do about it; the command line prints it as one
sentence and exits with code 2.
"""


class RefusalLensError(ValueError):
    """An error that the user can fix."""


class ModelError(RefusalLensError):
    """The model, its tokenizer or its chat template can't be used."""


class PromptError(RefusalLensError):
    """A prompt file, a suffix file or a prompt can't be used."""


class DirectionError(RefusalLensError):
    """A direction belongs to another model or another basis."""


class InterventionError(RefusalLensError):
    """An intervention's layers, positions or values don't match the model or its prompts."""


class SelectionError(RefusalLensError):
    """No candidate direction passes the rule; ``near_misses`` says what each would need."""

    def __init__(self, message: str, near_misses: tuple = (), selection: object | None = None):
        super().__init__(message)
        self.near_misses = near_misses
        self.selection = selection


class ConcurrentUseError(RefusalLensError):
    """A second thread tried to use a model that another one is using."""


class ResultError(RefusalLensError):
    """A result file or folder is missing, broken, or from another study."""


class SettingError(RefusalLensError):
    """A setting of a study has an invalid value."""


class LabelError(RefusalLensError):
    """A record has no such axis, label, condition or figure; the message lists those it has."""


class EngineError(RefusalLensError):
    """The Ray cluster can't be reached, has no room, or lost its workers."""
