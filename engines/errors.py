"""What can go wrong in an engine.

EngineError
|-- ConfigError       a setting that cannot work; also a ValueError
|-- PromptError       a prompt or embedding that the model cannot take; also a ValueError
|-- StreamError       a call that the stream's present state does not allow
|   `-- PositionLimit absolute positions are used up
|-- Cancelled         a block given up between two passes
|-- PoolFull          no room for another stream
|-- DeviceOutOfMemory  no memory left on the device for what was asked
|-- SnapshotError     bytes that are not a snapshot of this model
|-- WeightsError      weights that do not fit the network
`-- PlanError         a graph or plan of a stage that is missing, damaged or made for something else
    `-- PlanStopped   a plan whose build was stopped
"""


class EngineError(Exception):
    """Base of everything an engine raises on purpose."""


class ConfigError(EngineError, ValueError):
    """A setting that cannot work. The message names the value and the rule."""


class PromptError(EngineError, ValueError):
    """A prompt or prompt embedding that the model cannot take."""


class StreamError(EngineError):
    """A call that the stream's present state does not allow."""


class PositionLimit(StreamError):
    """The stream has used up its absolute RoPE positions."""


class Cancelled(EngineError):
    """The block was given up between two passes; its stream has not advanced."""


class PoolFull(EngineError):
    """A pool has too few tokens left for another stream or prompt."""


class DeviceOutOfMemory(EngineError):
    """The device has no memory left for what was asked; nothing that was open is lost."""


class SnapshotError(EngineError):
    """Bytes that are no snapshot, are damaged, or belong to another model."""


class WeightsError(EngineError):
    """A file of weights that cannot be read, or whose tensors are missing, left over or of the wrong shape."""


class PlanError(EngineError):
    """A graph or TensorRT plan of a stage that is not there, is damaged, or was made for something else."""


class PlanStopped(PlanError):
    """A plan whose build was stopped; nothing of it is left."""
