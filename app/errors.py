"""Exceptions of the service; `app.api` maps them to status codes.

SegcalError
├── InputError                invalid input
│   ├── UndecodableError      bytes that are not a readable image, array or archive
│   ├── TooLargeError         more bytes or pixels than allowed
│   ├── TooSlowError          an upload that stalls or is too slow
│   ├── MediaTypeError        a media type that is not accepted
│   └── ArgumentError         a well-formed request with a wrong value or shape
├── NotFoundError             no such model, calibrator or result
├── ConflictError             the request contradicts what is stored
├── UnauthorizedError         missing or wrong token
├── BusyError                 the queue is full
├── UnavailableError          models not loaded yet, or shutting down
├── StorageError              disk full or failing
└── SetupError                invalid settings, models or artifacts
    ├── SettingsError         an environment variable with an invalid value
    ├── ModelError            a model folder that can't be served
    │   └── UpstreamError     the inference server of a remote model does not serve it
    └── ArtifactError         a stored calibrator that is damaged or does not fit
        └── ActiveCalibratorError  the active calibrator is damaged
"""


class SegcalError(Exception):
    """Base class; the message is one sentence: expected X, got Y."""


class InputError(SegcalError):
    """Invalid input of the caller."""


class UndecodableError(InputError):
    """The bytes are not a readable image, array or archive."""


class TooLargeError(InputError):
    """More bytes or pixels than allowed."""


class TooSlowError(InputError):
    """An upload stalls or is too slow."""


class MediaTypeError(InputError):
    """A media type, of request or response, that is not accepted."""


class ArgumentError(InputError):
    """A well-formed request with a wrong value or shape."""


class NotFoundError(SegcalError):
    """No such model, calibrator or result."""


class ConflictError(SegcalError):
    """The request contradicts what is stored."""


class UnauthorizedError(SegcalError):
    """The token is missing or wrong."""


class BusyError(SegcalError):
    """The queue is full; the caller may retry."""


class UnavailableError(SegcalError):
    """The service is not ready yet, or is shutting down."""


class StorageError(SegcalError):
    """The disk is full or fails."""


class SetupError(SegcalError):
    """Invalid settings, models or artifacts."""


class SettingsError(SetupError):
    """An environment variable has an invalid value."""


class ModelError(SetupError):
    """A model folder can't be served."""


class UpstreamError(ModelError):
    """The inference server of a remote model does not serve it now; the caller may retry."""


class ArtifactError(SetupError):
    """A stored calibrator is damaged or does not fit."""


class ActiveCalibratorError(ArtifactError):
    """The active calibrator of a model, or the pointer to it, is damaged."""
