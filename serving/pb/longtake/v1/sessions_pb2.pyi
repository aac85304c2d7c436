import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_STATE_UNSPECIFIED: _ClassVar[SessionState]
    SESSION_STATE_CREATED: _ClassVar[SessionState]
    SESSION_STATE_READY: _ClassVar[SessionState]
    SESSION_STATE_RUNNING: _ClassVar[SessionState]
    SESSION_STATE_PAUSED: _ClassVar[SessionState]
    SESSION_STATE_ENDED: _ClassVar[SessionState]

class InputKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INPUT_KIND_UNSPECIFIED: _ClassVar[InputKind]
    INPUT_KIND_NONE: _ClassVar[InputKind]
    INPUT_KIND_VIDEO: _ClassVar[InputKind]

class PictureFit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_FIT_UNSPECIFIED: _ClassVar[PictureFit]
    PICTURE_FIT_FILL: _ClassVar[PictureFit]
    PICTURE_FIT_WHOLE: _ClassVar[PictureFit]
    PICTURE_FIT_STRETCH: _ClassVar[PictureFit]

class VideoLoop(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VIDEO_LOOP_UNSPECIFIED: _ClassVar[VideoLoop]
    VIDEO_LOOP_PLAIN: _ClassVar[VideoLoop]
    VIDEO_LOOP_BATCH: _ClassVar[VideoLoop]

class WaitReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WAIT_REASON_UNSPECIFIED: _ClassVar[WaitReason]
    WAIT_REASON_PROMPT: _ClassVar[WaitReason]
    WAIT_REASON_SHOWN: _ClassVar[WaitReason]
    WAIT_REASON_VIEWER: _ClassVar[WaitReason]
    WAIT_REASON_SERVER: _ClassVar[WaitReason]
    WAIT_REASON_REPLICA: _ClassVar[WaitReason]
    WAIT_REASON_INPUT: _ClassVar[WaitReason]

class TransitionMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSITION_METHOD_UNSPECIFIED: _ClassVar[TransitionMethod]
    TRANSITION_METHOD_LINEAR: _ClassVar[TransitionMethod]
    TRANSITION_METHOD_SLERP: _ClassVar[TransitionMethod]

class SnapshotKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SNAPSHOT_KIND_UNSPECIFIED: _ClassVar[SnapshotKind]
    SNAPSHOT_KIND_LIGHT: _ClassVar[SnapshotKind]

class PictureFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_FORMAT_UNSPECIFIED: _ClassVar[PictureFormat]
    PICTURE_FORMAT_JPEG: _ClassVar[PictureFormat]
    PICTURE_FORMAT_PNG: _ClassVar[PictureFormat]
    PICTURE_FORMAT_H264: _ClassVar[PictureFormat]

class CommandKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMMAND_KIND_UNSPECIFIED: _ClassVar[CommandKind]
    COMMAND_KIND_SCHEDULE_PROMPT: _ClassVar[CommandKind]
    COMMAND_KIND_REMOVE_PROMPT: _ClassVar[CommandKind]
    COMMAND_KIND_MOVE_PROMPT: _ClassVar[CommandKind]
    COMMAND_KIND_START: _ClassVar[CommandKind]
    COMMAND_KIND_PAUSE: _ClassVar[CommandKind]
    COMMAND_KIND_RESUME: _ClassVar[CommandKind]
    COMMAND_KIND_RESET: _ClassVar[CommandKind]
    COMMAND_KIND_ATTACH: _ClassVar[CommandKind]
    COMMAND_KIND_SHOWN: _ClassVar[CommandKind]
    COMMAND_KIND_PICTURE: _ClassVar[CommandKind]
    COMMAND_KIND_END_INPUT: _ClassVar[CommandKind]
    COMMAND_KIND_CUT: _ClassVar[CommandKind]
    COMMAND_KIND_RESTYLE: _ClassVar[CommandKind]

class ReceiptStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECEIPT_STAGE_UNSPECIFIED: _ClassVar[ReceiptStage]
    RECEIPT_STAGE_ACCEPTED: _ClassVar[ReceiptStage]
    RECEIPT_STAGE_APPLIED: _ClassVar[ReceiptStage]
    RECEIPT_STAGE_REFUSED: _ClassVar[ReceiptStage]
    RECEIPT_STAGE_DROPPED: _ClassVar[ReceiptStage]

class ResumeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESUME_KIND_UNSPECIFIED: _ClassVar[ResumeKind]
    RESUME_KIND_REBUILT: _ClassVar[ResumeKind]
    RESUME_KIND_EXACT: _ClassVar[ResumeKind]

class StreamEndReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_END_REASON_UNSPECIFIED: _ClassVar[StreamEndReason]
    STREAM_END_REASON_SESSION_ENDED: _ClassVar[StreamEndReason]
    STREAM_END_REASON_TIME_LIMIT: _ClassVar[StreamEndReason]
    STREAM_END_REASON_MOVED: _ClassVar[StreamEndReason]

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_REQUEST: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_TIMELINE: _ClassVar[ErrorReason]
    ERROR_REASON_COMMAND_ID_REUSED: _ClassVar[ErrorReason]
    ERROR_REASON_SESSION_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_SESSION_LOST: _ClassVar[ErrorReason]
    ERROR_REASON_WRONG_STATE: _ClassVar[ErrorReason]
    ERROR_REASON_CONTROLLER_REPLACED: _ClassVar[ErrorReason]
    ERROR_REASON_FRAME_OUT_OF_RANGE: _ClassVar[ErrorReason]
    ERROR_REASON_SLOTS_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_MEMORY_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_LIMIT_REACHED: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_ALLOWED: _ClassVar[ErrorReason]
    ERROR_REASON_REPLICA_LOST: _ClassVar[ErrorReason]
    ERROR_REASON_SESSION_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_ORIGIN_NOT_ALLOWED: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_REQUESTS: _ClassVar[ErrorReason]
    ERROR_REASON_SESSION_MOVED: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_OPERATOR: _ClassVar[ErrorReason]
SESSION_STATE_UNSPECIFIED: SessionState
SESSION_STATE_CREATED: SessionState
SESSION_STATE_READY: SessionState
SESSION_STATE_RUNNING: SessionState
SESSION_STATE_PAUSED: SessionState
SESSION_STATE_ENDED: SessionState
INPUT_KIND_UNSPECIFIED: InputKind
INPUT_KIND_NONE: InputKind
INPUT_KIND_VIDEO: InputKind
PICTURE_FIT_UNSPECIFIED: PictureFit
PICTURE_FIT_FILL: PictureFit
PICTURE_FIT_WHOLE: PictureFit
PICTURE_FIT_STRETCH: PictureFit
VIDEO_LOOP_UNSPECIFIED: VideoLoop
VIDEO_LOOP_PLAIN: VideoLoop
VIDEO_LOOP_BATCH: VideoLoop
WAIT_REASON_UNSPECIFIED: WaitReason
WAIT_REASON_PROMPT: WaitReason
WAIT_REASON_SHOWN: WaitReason
WAIT_REASON_VIEWER: WaitReason
WAIT_REASON_SERVER: WaitReason
WAIT_REASON_REPLICA: WaitReason
WAIT_REASON_INPUT: WaitReason
TRANSITION_METHOD_UNSPECIFIED: TransitionMethod
TRANSITION_METHOD_LINEAR: TransitionMethod
TRANSITION_METHOD_SLERP: TransitionMethod
SNAPSHOT_KIND_UNSPECIFIED: SnapshotKind
SNAPSHOT_KIND_LIGHT: SnapshotKind
PICTURE_FORMAT_UNSPECIFIED: PictureFormat
PICTURE_FORMAT_JPEG: PictureFormat
PICTURE_FORMAT_PNG: PictureFormat
PICTURE_FORMAT_H264: PictureFormat
COMMAND_KIND_UNSPECIFIED: CommandKind
COMMAND_KIND_SCHEDULE_PROMPT: CommandKind
COMMAND_KIND_REMOVE_PROMPT: CommandKind
COMMAND_KIND_MOVE_PROMPT: CommandKind
COMMAND_KIND_START: CommandKind
COMMAND_KIND_PAUSE: CommandKind
COMMAND_KIND_RESUME: CommandKind
COMMAND_KIND_RESET: CommandKind
COMMAND_KIND_ATTACH: CommandKind
COMMAND_KIND_SHOWN: CommandKind
COMMAND_KIND_PICTURE: CommandKind
COMMAND_KIND_END_INPUT: CommandKind
COMMAND_KIND_CUT: CommandKind
COMMAND_KIND_RESTYLE: CommandKind
RECEIPT_STAGE_UNSPECIFIED: ReceiptStage
RECEIPT_STAGE_ACCEPTED: ReceiptStage
RECEIPT_STAGE_APPLIED: ReceiptStage
RECEIPT_STAGE_REFUSED: ReceiptStage
RECEIPT_STAGE_DROPPED: ReceiptStage
RESUME_KIND_UNSPECIFIED: ResumeKind
RESUME_KIND_REBUILT: ResumeKind
RESUME_KIND_EXACT: ResumeKind
STREAM_END_REASON_UNSPECIFIED: StreamEndReason
STREAM_END_REASON_SESSION_ENDED: StreamEndReason
STREAM_END_REASON_TIME_LIMIT: StreamEndReason
STREAM_END_REASON_MOVED: StreamEndReason
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_INVALID_REQUEST: ErrorReason
ERROR_REASON_INVALID_TIMELINE: ErrorReason
ERROR_REASON_COMMAND_ID_REUSED: ErrorReason
ERROR_REASON_SESSION_NOT_FOUND: ErrorReason
ERROR_REASON_SESSION_LOST: ErrorReason
ERROR_REASON_WRONG_STATE: ErrorReason
ERROR_REASON_CONTROLLER_REPLACED: ErrorReason
ERROR_REASON_FRAME_OUT_OF_RANGE: ErrorReason
ERROR_REASON_SLOTS_FULL: ErrorReason
ERROR_REASON_MEMORY_FULL: ErrorReason
ERROR_REASON_LIMIT_REACHED: ErrorReason
ERROR_REASON_NOT_ALLOWED: ErrorReason
ERROR_REASON_REPLICA_LOST: ErrorReason
ERROR_REASON_SESSION_FAILED: ErrorReason
ERROR_REASON_ORIGIN_NOT_ALLOWED: ErrorReason
ERROR_REASON_TOO_MANY_REQUESTS: ErrorReason
ERROR_REASON_SESSION_MOVED: ErrorReason
ERROR_REASON_NOT_OPERATOR: ErrorReason

class SessionOptions(_message.Message):
    __slots__ = ("model", "seed", "height", "width", "fps", "ahead", "lease", "input", "fit", "noise_scale")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCALE_FIELD_NUMBER: _ClassVar[int]
    model: str
    seed: int
    height: int
    width: int
    fps: int
    ahead: int
    lease: _duration_pb2.Duration
    input: InputKind
    fit: PictureFit
    noise_scale: float
    def __init__(self, model: _Optional[str] = ..., seed: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., fps: _Optional[int] = ..., ahead: _Optional[int] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., input: _Optional[_Union[InputKind, str]] = ..., fit: _Optional[_Union[PictureFit, str]] = ..., noise_scale: _Optional[float] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("id", "state", "options", "take", "next_frame", "current_start_frame", "shown_frame", "prompt", "pending", "applied", "viewers", "recording", "oldest_frame", "create_time", "replica", "applied_count", "held_fps", "waiting", "pending_count", "provenance", "resumed", "first_block_frames", "block_frames", "loop", "suspended", "broken_picture", "restyling")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TAKE_FIELD_NUMBER: _ClassVar[int]
    NEXT_FRAME_FIELD_NUMBER: _ClassVar[int]
    CURRENT_START_FRAME_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FRAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    VIEWERS_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FRAME_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    APPLIED_COUNT_FIELD_NUMBER: _ClassVar[int]
    HELD_FPS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PENDING_COUNT_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FRAMES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FRAMES_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    BROKEN_PICTURE_FIELD_NUMBER: _ClassVar[int]
    RESTYLING_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: SessionState
    options: SessionOptions
    take: int
    next_frame: int
    current_start_frame: int
    shown_frame: int
    prompt: str
    pending: _containers.RepeatedCompositeFieldContainer[Cue]
    applied: _containers.RepeatedCompositeFieldContainer[AppliedCue]
    viewers: int
    recording: str
    oldest_frame: int
    create_time: _timestamp_pb2.Timestamp
    replica: str
    applied_count: int
    held_fps: float
    waiting: WaitReason
    pending_count: int
    provenance: Provenance
    resumed: Resumed
    first_block_frames: int
    block_frames: int
    loop: VideoLoop
    suspended: bool
    broken_picture: str
    restyling: Restyling
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[SessionState, str]] = ..., options: _Optional[_Union[SessionOptions, _Mapping]] = ..., take: _Optional[int] = ..., next_frame: _Optional[int] = ..., current_start_frame: _Optional[int] = ..., shown_frame: _Optional[int] = ..., prompt: _Optional[str] = ..., pending: _Optional[_Iterable[_Union[Cue, _Mapping]]] = ..., applied: _Optional[_Iterable[_Union[AppliedCue, _Mapping]]] = ..., viewers: _Optional[int] = ..., recording: _Optional[str] = ..., oldest_frame: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., replica: _Optional[str] = ..., applied_count: _Optional[int] = ..., held_fps: _Optional[float] = ..., waiting: _Optional[_Union[WaitReason, str]] = ..., pending_count: _Optional[int] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., resumed: _Optional[_Union[Resumed, _Mapping]] = ..., first_block_frames: _Optional[int] = ..., block_frames: _Optional[int] = ..., loop: _Optional[_Union[VideoLoop, str]] = ..., suspended: _Optional[bool] = ..., broken_picture: _Optional[str] = ..., restyling: _Optional[_Union[Restyling, _Mapping]] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("longtake", "model", "codec", "origins", "weights", "loras", "torch", "device", "threads", "dtype", "kernels", "base_model")
    LONGTAKE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    longtake: str
    model: str
    codec: str
    origins: _containers.RepeatedCompositeFieldContainer[Origin]
    weights: _containers.RepeatedCompositeFieldContainer[Fingerprint]
    loras: _containers.RepeatedCompositeFieldContainer[Lora]
    torch: str
    device: str
    threads: int
    dtype: str
    kernels: str
    base_model: str
    def __init__(self, longtake: _Optional[str] = ..., model: _Optional[str] = ..., codec: _Optional[str] = ..., origins: _Optional[_Iterable[_Union[Origin, _Mapping]]] = ..., weights: _Optional[_Iterable[_Union[Fingerprint, _Mapping]]] = ..., loras: _Optional[_Iterable[_Union[Lora, _Mapping]]] = ..., torch: _Optional[str] = ..., device: _Optional[str] = ..., threads: _Optional[int] = ..., dtype: _Optional[str] = ..., kernels: _Optional[str] = ..., base_model: _Optional[str] = ...) -> None: ...

class Origin(_message.Message):
    __slots__ = ("repo", "revision", "licence")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    licence: str
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., licence: _Optional[str] = ...) -> None: ...

class Fingerprint(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Lora(_message.Message):
    __slots__ = ("name", "weight", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight: float
    sha256: str
    def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ..., sha256: _Optional[str] = ...) -> None: ...

class WeightedPrompt(_message.Message):
    __slots__ = ("text", "weight")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    text: str
    weight: float
    def __init__(self, text: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class Transition(_message.Message):
    __slots__ = ("blocks", "method")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    method: TransitionMethod
    def __init__(self, blocks: _Optional[int] = ..., method: _Optional[_Union[TransitionMethod, str]] = ...) -> None: ...

class Restyling(_message.Message):
    __slots__ = ("noise_scale", "follows_motion", "renews_sink", "cuts")
    NOISE_SCALE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_MOTION_FIELD_NUMBER: _ClassVar[int]
    RENEWS_SINK_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    noise_scale: float
    follows_motion: bool
    renews_sink: bool
    cuts: bool
    def __init__(self, noise_scale: _Optional[float] = ..., follows_motion: _Optional[bool] = ..., renews_sink: _Optional[bool] = ..., cuts: _Optional[bool] = ...) -> None: ...

class Cue(_message.Message):
    __slots__ = ("frame", "prompts", "transition", "restyling")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    RESTYLING_FIELD_NUMBER: _ClassVar[int]
    frame: int
    prompts: _containers.RepeatedCompositeFieldContainer[WeightedPrompt]
    transition: Transition
    restyling: Restyling
    def __init__(self, frame: _Optional[int] = ..., prompts: _Optional[_Iterable[_Union[WeightedPrompt, _Mapping]]] = ..., transition: _Optional[_Union[Transition, _Mapping]] = ..., restyling: _Optional[_Union[Restyling, _Mapping]] = ...) -> None: ...

class AppliedCue(_message.Message):
    __slots__ = ("cue", "frame", "cut_tokens", "picture_size")
    CUE_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PICTURE_SIZE_FIELD_NUMBER: _ClassVar[int]
    cue: Cue
    frame: int
    cut_tokens: int
    picture_size: PictureSize
    def __init__(self, cue: _Optional[_Union[Cue, _Mapping]] = ..., frame: _Optional[int] = ..., cut_tokens: _Optional[int] = ..., picture_size: _Optional[_Union[PictureSize, _Mapping]] = ...) -> None: ...

class DescribeServerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PictureSize(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class DescribeServerResponse(_message.Message):
    __slots__ = ("model", "sizes", "other_sizes", "max_pixels", "max_fps", "default_fps", "inputs", "video_size")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    OTHER_SIZES_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_FPS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FPS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    VIDEO_SIZE_FIELD_NUMBER: _ClassVar[int]
    model: str
    sizes: _containers.RepeatedCompositeFieldContainer[PictureSize]
    other_sizes: bool
    max_pixels: int
    max_fps: int
    default_fps: int
    inputs: _containers.RepeatedScalarFieldContainer[InputKind]
    video_size: PictureSize
    def __init__(self, model: _Optional[str] = ..., sizes: _Optional[_Iterable[_Union[PictureSize, _Mapping]]] = ..., other_sizes: _Optional[bool] = ..., max_pixels: _Optional[int] = ..., max_fps: _Optional[int] = ..., default_fps: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[InputKind, str]]] = ..., video_size: _Optional[_Union[PictureSize, _Mapping]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "model", "cluster", "snapshot_formats", "free_slots")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FORMATS_FIELD_NUMBER: _ClassVar[int]
    FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    model: str
    cluster: str
    snapshot_formats: _containers.RepeatedScalarFieldContainer[str]
    free_slots: int
    def __init__(self, version: _Optional[str] = ..., model: _Optional[str] = ..., cluster: _Optional[str] = ..., snapshot_formats: _Optional[_Iterable[str]] = ..., free_slots: _Optional[int] = ...) -> None: ...

class EvacuateServerRequest(_message.Message):
    __slots__ = ("to", "public", "gone", "page")
    TO_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    to: str
    public: str
    gone: bool
    page: str
    def __init__(self, to: _Optional[str] = ..., public: _Optional[str] = ..., gone: _Optional[bool] = ..., page: _Optional[str] = ...) -> None: ...

class EvacuateServerResponse(_message.Message):
    __slots__ = ("sessions", "held")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    sessions: int
    held: int
    def __init__(self, sessions: _Optional[int] = ..., held: _Optional[int] = ...) -> None: ...

class OfferSessionRequest(_message.Message):
    __slots__ = ("cluster", "session_id", "caller")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    session_id: str
    caller: str
    def __init__(self, cluster: _Optional[str] = ..., session_id: _Optional[str] = ..., caller: _Optional[str] = ...) -> None: ...

class ImportSessionRequest(_message.Message):
    __slots__ = ("cluster", "transfer", "session")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    transfer: str
    session: EvacuatedSession
    def __init__(self, cluster: _Optional[str] = ..., transfer: _Optional[str] = ..., session: _Optional[_Union[EvacuatedSession, _Mapping]] = ...) -> None: ...

class SettleTransferRequest(_message.Message):
    __slots__ = ("cluster", "session_id", "transfer")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    session_id: str
    transfer: str
    def __init__(self, cluster: _Optional[str] = ..., session_id: _Optional[str] = ..., transfer: _Optional[str] = ...) -> None: ...

class SettleTransferResponse(_message.Message):
    __slots__ = ("begun",)
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    begun: bool
    def __init__(self, begun: _Optional[bool] = ...) -> None: ...

class EvacuatedSession(_message.Message):
    __slots__ = ("caller", "snapshot", "chunks", "controller", "seq", "pending_command_ids", "answered")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PENDING_COMMAND_IDS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    caller: str
    snapshot: bytes
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    controller: str
    seq: int
    pending_command_ids: _containers.RepeatedScalarFieldContainer[str]
    answered: _containers.RepeatedCompositeFieldContainer[AnsweredCommand]
    def __init__(self, caller: _Optional[str] = ..., snapshot: _Optional[bytes] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., controller: _Optional[str] = ..., seq: _Optional[int] = ..., pending_command_ids: _Optional[_Iterable[str]] = ..., answered: _Optional[_Iterable[_Union[AnsweredCommand, _Mapping]]] = ...) -> None: ...

class AnsweredCommand(_message.Message):
    __slots__ = ("client_id", "command_id", "content", "receipt", "refusal")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    command_id: str
    content: bytes
    receipt: Receipt
    refusal: Error
    def __init__(self, client_id: _Optional[str] = ..., command_id: _Optional[str] = ..., content: _Optional[bytes] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., refusal: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("options", "cues", "client_id", "command_id")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CUES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    options: SessionOptions
    cues: _containers.RepeatedCompositeFieldContainer[Cue]
    client_id: str
    command_id: str
    def __init__(self, options: _Optional[_Union[SessionOptions, _Mapping]] = ..., cues: _Optional[_Iterable[_Union[Cue, _Mapping]]] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class SchedulePromptRequest(_message.Message):
    __slots__ = ("session_id", "cue", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CUE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    cue: Cue
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., cue: _Optional[_Union[Cue, _Mapping]] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class RemovePromptRequest(_message.Message):
    __slots__ = ("session_id", "frame", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    frame: int
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., frame: _Optional[int] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class MovePromptRequest(_message.Message):
    __slots__ = ("session_id", "frame", "to_frame", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    TO_FRAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    frame: int
    to_frame: int
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., frame: _Optional[int] = ..., to_frame: _Optional[int] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class ListAppliedCuesRequest(_message.Message):
    __slots__ = ("session_id", "page_token", "page_size")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    page_token: str
    page_size: int
    def __init__(self, session_id: _Optional[str] = ..., page_token: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class ListAppliedCuesResponse(_message.Message):
    __slots__ = ("applied", "next_page_token")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    applied: _containers.RepeatedCompositeFieldContainer[AppliedCue]
    next_page_token: str
    def __init__(self, applied: _Optional[_Iterable[_Union[AppliedCue, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListPendingCuesRequest(_message.Message):
    __slots__ = ("session_id", "page_token", "page_size")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    page_token: str
    page_size: int
    def __init__(self, session_id: _Optional[str] = ..., page_token: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class ListPendingCuesResponse(_message.Message):
    __slots__ = ("pending", "next_page_token")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    pending: _containers.RepeatedCompositeFieldContainer[Cue]
    next_page_token: str
    def __init__(self, pending: _Optional[_Iterable[_Union[Cue, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StartRequest(_message.Message):
    __slots__ = ("session_id", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("session_id", "frame", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    frame: int
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., frame: _Optional[int] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("session_id", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class ResetRequest(_message.Message):
    __slots__ = ("session_id", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class CutRequest(_message.Message):
    __slots__ = ("session_id", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class RestyleRequest(_message.Message):
    __slots__ = ("session_id", "client_id", "command_id", "restyling")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    RESTYLING_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    client_id: str
    command_id: str
    restyling: Restyling
    def __init__(self, session_id: _Optional[str] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ..., restyling: _Optional[_Union[Restyling, _Mapping]] = ...) -> None: ...

class ForkSessionRequest(_message.Message):
    __slots__ = ("session_id", "frame", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    frame: int
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., frame: _Optional[int] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class SnapshotSessionRequest(_message.Message):
    __slots__ = ("session_id", "kind")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    kind: SnapshotKind
    def __init__(self, session_id: _Optional[str] = ..., kind: _Optional[_Union[SnapshotKind, str]] = ...) -> None: ...

class SnapshotSessionResponse(_message.Message):
    __slots__ = ("snapshot", "next_frame", "kind")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NEXT_FRAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    snapshot: bytes
    next_frame: int
    kind: SnapshotKind
    def __init__(self, snapshot: _Optional[bytes] = ..., next_frame: _Optional[int] = ..., kind: _Optional[_Union[SnapshotKind, str]] = ...) -> None: ...

class RestoreSessionRequest(_message.Message):
    __slots__ = ("snapshot", "client_id", "command_id")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    snapshot: bytes
    client_id: str
    command_id: str
    def __init__(self, snapshot: _Optional[bytes] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class Recording(_message.Message):
    __slots__ = ("name", "session_id", "first_frame", "frames", "bytes", "finished", "finish_time", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_FRAME_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    session_id: str
    first_frame: int
    frames: int
    bytes: int
    finished: bool
    finish_time: _timestamp_pb2.Timestamp
    error: Error
    def __init__(self, name: _Optional[str] = ..., session_id: _Optional[str] = ..., first_frame: _Optional[int] = ..., frames: _Optional[int] = ..., bytes: _Optional[int] = ..., finished: _Optional[bool] = ..., finish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class StartRecordingRequest(_message.Message):
    __slots__ = ("session_id", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class StopRecordingRequest(_message.Message):
    __slots__ = ("session_id", "client_id", "command_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    client_id: str
    command_id: str
    def __init__(self, session_id: _Optional[str] = ..., client_id: _Optional[str] = ..., command_id: _Optional[str] = ...) -> None: ...

class ListRecordingsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRecordingsResponse(_message.Message):
    __slots__ = ("recordings", "next_page_token")
    RECORDINGS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    recordings: _containers.RepeatedCompositeFieldContainer[Recording]
    next_page_token: str
    def __init__(self, recordings: _Optional[_Iterable[_Union[Recording, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteRecordingRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ReadRecordingRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ReadRecordingResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("session_id", "from_frame")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_FRAME_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    from_frame: int
    def __init__(self, session_id: _Optional[str] = ..., from_frame: _Optional[int] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("id", "client_id", "attach", "schedule_prompt", "remove_prompt", "move_prompt", "start", "pause", "resume", "reset", "shown", "picture", "end_input", "cut", "restyle")
    ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    REMOVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    MOVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    END_INPUT_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    RESTYLE_FIELD_NUMBER: _ClassVar[int]
    id: str
    client_id: str
    attach: Attach
    schedule_prompt: Cue
    remove_prompt: RemovePrompt
    move_prompt: MovePrompt
    start: Start
    pause: Pause
    resume: Resume
    reset: Reset
    shown: Shown
    picture: Picture
    end_input: EndInput
    cut: Cut
    restyle: Restyling
    def __init__(self, id: _Optional[str] = ..., client_id: _Optional[str] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., schedule_prompt: _Optional[_Union[Cue, _Mapping]] = ..., remove_prompt: _Optional[_Union[RemovePrompt, _Mapping]] = ..., move_prompt: _Optional[_Union[MovePrompt, _Mapping]] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., pause: _Optional[_Union[Pause, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ..., shown: _Optional[_Union[Shown, _Mapping]] = ..., picture: _Optional[_Union[Picture, _Mapping]] = ..., end_input: _Optional[_Union[EndInput, _Mapping]] = ..., cut: _Optional[_Union[Cut, _Mapping]] = ..., restyle: _Optional[_Union[Restyling, _Mapping]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("session_id", "from_frame", "reattach")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_FRAME_FIELD_NUMBER: _ClassVar[int]
    REATTACH_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    from_frame: int
    reattach: bool
    def __init__(self, session_id: _Optional[str] = ..., from_frame: _Optional[int] = ..., reattach: _Optional[bool] = ...) -> None: ...

class RemovePrompt(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: int
    def __init__(self, frame: _Optional[int] = ...) -> None: ...

class MovePrompt(_message.Message):
    __slots__ = ("frame", "to_frame")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    TO_FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: int
    to_frame: int
    def __init__(self, frame: _Optional[int] = ..., to_frame: _Optional[int] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Pause(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: int
    def __init__(self, frame: _Optional[int] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Reset(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Cut(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Shown(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: int
    def __init__(self, frame: _Optional[int] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("id", "time_us", "format", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: int
    time_us: int
    format: PictureFormat
    data: bytes
    def __init__(self, id: _Optional[int] = ..., time_us: _Optional[int] = ..., format: _Optional[_Union[PictureFormat, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class EndInput(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Event(_message.Message):
    __slots__ = ("take", "seq", "chunk", "progress", "receipt", "state", "applied", "resumed", "gap", "error", "heartbeat", "replaced", "slowed", "end", "recording")
    TAKE_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    SLOWED_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    take: int
    seq: int
    chunk: Chunk
    progress: Progress
    receipt: Receipt
    state: Session
    applied: AppliedCue
    resumed: Resumed
    gap: Gap
    error: Error
    heartbeat: Heartbeat
    replaced: Replaced
    slowed: Slowed
    end: StreamEnd
    recording: Recording
    def __init__(self, take: _Optional[int] = ..., seq: _Optional[int] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., state: _Optional[_Union[Session, _Mapping]] = ..., applied: _Optional[_Union[AppliedCue, _Mapping]] = ..., resumed: _Optional[_Union[Resumed, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., replaced: _Optional[_Union[Replaced, _Mapping]] = ..., slowed: _Optional[_Union[Slowed, _Mapping]] = ..., end: _Optional[_Union[StreamEnd, _Mapping]] = ..., recording: _Optional[_Union[Recording, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("block", "first_frame", "units", "loop")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    FIRST_FRAME_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    block: int
    first_frame: int
    units: _containers.RepeatedCompositeFieldContainer[AccessUnit]
    loop: VideoLoop
    def __init__(self, block: _Optional[int] = ..., first_frame: _Optional[int] = ..., units: _Optional[_Iterable[_Union[AccessUnit, _Mapping]]] = ..., loop: _Optional[_Union[VideoLoop, str]] = ...) -> None: ...

class AccessUnit(_message.Message):
    __slots__ = ("data", "frame", "pts", "key", "picture")
    DATA_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    PTS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    frame: int
    pts: int
    key: bool
    picture: int
    def __init__(self, data: _Optional[bytes] = ..., frame: _Optional[int] = ..., pts: _Optional[int] = ..., key: _Optional[bool] = ..., picture: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("current_start_frame", "generated_fps", "queued_blocks", "input")
    CURRENT_START_FRAME_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FPS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    current_start_frame: int
    generated_fps: float
    queued_blocks: int
    input: InputProgress
    def __init__(self, current_start_frame: _Optional[int] = ..., generated_fps: _Optional[float] = ..., queued_blocks: _Optional[int] = ..., input: _Optional[_Union[InputProgress, _Mapping]] = ...) -> None: ...

class InputProgress(_message.Message):
    __slots__ = ("received", "dropped", "broken", "noise_scale")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCALE_FIELD_NUMBER: _ClassVar[int]
    received: int
    dropped: int
    broken: int
    noise_scale: float
    def __init__(self, received: _Optional[int] = ..., dropped: _Optional[int] = ..., broken: _Optional[int] = ..., noise_scale: _Optional[float] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("command_id", "command", "stage", "frame", "cue_frame", "error", "replicated", "repeated")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CUE_FRAME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REPLICATED_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    command: CommandKind
    stage: ReceiptStage
    frame: int
    cue_frame: int
    error: Error
    replicated: bool
    repeated: bool
    def __init__(self, command_id: _Optional[str] = ..., command: _Optional[_Union[CommandKind, str]] = ..., stage: _Optional[_Union[ReceiptStage, str]] = ..., frame: _Optional[int] = ..., cue_frame: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., replicated: _Optional[bool] = ..., repeated: _Optional[bool] = ...) -> None: ...

class Resumed(_message.Message):
    __slots__ = ("frame", "reason", "silence", "kind")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SILENCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    frame: int
    reason: str
    silence: _duration_pb2.Duration
    kind: ResumeKind
    def __init__(self, frame: _Optional[int] = ..., reason: _Optional[str] = ..., silence: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., kind: _Optional[_Union[ResumeKind, str]] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("first_frame", "frames")
    FIRST_FRAME_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    first_frame: int
    frames: int
    def __init__(self, first_frame: _Optional[int] = ..., frames: _Optional[int] = ...) -> None: ...

class Slowed(_message.Message):
    __slots__ = ("held_fps", "reason")
    HELD_FPS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    held_fps: float
    reason: str
    def __init__(self, held_fps: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("waiting",)
    WAITING_FIELD_NUMBER: _ClassVar[int]
    waiting: WaitReason
    def __init__(self, waiting: _Optional[_Union[WaitReason, str]] = ...) -> None: ...

class StreamEnd(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: StreamEndReason
    message: str
    def __init__(self, reason: _Optional[_Union[StreamEndReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Replaced(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "reason", "retry_delay", "server")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: ErrorReason
    retry_delay: _duration_pb2.Duration
    server: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[_Union[ErrorReason, str]] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., server: _Optional[str] = ...) -> None: ...
