"""Everything that can go wrong, as one tree; only `app.api` knows which status code each gets.

SegcalError
├── InputError                what the caller sent can't be used
│   ├── UndecodableError      bytes that are no image, array or archive
│   ├── TooLargeError         more bytes or pixels than this service accepts
│   ├── TooSlowError          an upload that does not get on
│   ├── MediaTypeError        a kind of body that is not accepted
│   └── ArgumentError         a well-formed request with a wrong value or shape
├── NotFoundError             no such model, calibrator or result
├── ConflictError             the request contradicts what is stored
├── UnauthorizedError         no token, or a wrong one
├── BusyError                 the queue is full; try again
├── UnavailableError          not loaded yet, or draining
├── StorageError              no room, or a disk that fails
└── SetupError                the service can't start or serve with what it was given
    ├── SettingsError         an environment variable with a wrong value
    ├── ModelError            a model folder that can't be served
    └── ArtifactError         a stored calibrator that can't be trusted
"""


class SegcalError(Exception):
    """The root; its message is one sentence that says what was expected and what came."""


class InputError(SegcalError):
    """What the caller sent can't be used."""


class UndecodableError(InputError):
    """The bytes are no image, array or archive that can be read."""


class TooLargeError(InputError):
    """More bytes or pixels than this service accepts."""


class TooSlowError(InputError):
    """An upload that stands still, or gets on too slowly to hold a place for it."""


class MediaTypeError(InputError):
    """A kind of body, or of answer, that is not accepted."""


class ArgumentError(InputError):
    """A well-formed request with a wrong value or shape."""


class NotFoundError(SegcalError):
    """No such model, calibrator or result."""


class ConflictError(SegcalError):
    """The request contradicts what is stored."""


class UnauthorizedError(SegcalError):
    """No token came, or a wrong one."""


class BusyError(SegcalError):
    """The queue is full; the caller may try again soon."""


class UnavailableError(SegcalError):
    """The service is not ready yet, or is shutting down."""


class StorageError(SegcalError):
    """There is no room on the disk, or it fails."""


class SetupError(SegcalError):
    """The service can't start or serve with what it was given."""


class SettingsError(SetupError):
    """A setting has a wrong value."""


class ModelError(SetupError):
    """A model folder can't be served."""


class ArtifactError(SetupError):
    """A stored calibrator can't be trusted or does not fit."""
