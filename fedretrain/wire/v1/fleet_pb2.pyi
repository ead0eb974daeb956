from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("protocol", "token", "certificate_request", "traits")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    TRAITS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    token: str
    certificate_request: bytes
    traits: DeviceTraits
    def __init__(self, protocol: _Optional[int] = ..., token: _Optional[str] = ..., certificate_request: _Optional[bytes] = ..., traits: _Optional[_Union[DeviceTraits, _Mapping]] = ...) -> None: ...

class DeviceTraits(_message.Message):
    __slots__ = ("device_type", "site", "person", "trains", "methods", "node_key", "sealing_key")
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    PERSON_FIELD_NUMBER: _ClassVar[int]
    TRAINS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    SEALING_KEY_FIELD_NUMBER: _ClassVar[int]
    device_type: str
    site: str
    person: str
    trains: bool
    methods: _containers.RepeatedScalarFieldContainer[str]
    node_key: bytes
    sealing_key: bytes
    def __init__(self, device_type: _Optional[str] = ..., site: _Optional[str] = ..., person: _Optional[str] = ..., trains: _Optional[bool] = ..., methods: _Optional[_Iterable[str]] = ..., node_key: _Optional[bytes] = ..., sealing_key: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("protocol", "population", "device", "certificate", "authority", "root_metadata", "control_address", "number")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    ROOT_METADATA_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    population: str
    device: str
    certificate: bytes
    authority: bytes
    root_metadata: bytes
    control_address: str
    number: int
    def __init__(self, protocol: _Optional[int] = ..., population: _Optional[str] = ..., device: _Optional[str] = ..., certificate: _Optional[bytes] = ..., authority: _Optional[bytes] = ..., root_metadata: _Optional[bytes] = ..., control_address: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("protocol", "certificate_request", "sealing_key")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    SEALING_KEY_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    certificate_request: bytes
    sealing_key: bytes
    def __init__(self, protocol: _Optional[int] = ..., certificate_request: _Optional[bytes] = ..., sealing_key: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("protocol", "certificate")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    certificate: bytes
    def __init__(self, protocol: _Optional[int] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("protocol", "agent_version", "installation", "boot", "clock_at", "clock_trusted", "serves", "shadows", "counter", "healthy", "refused", "refused_reason", "holds", "pending_records", "conditions", "ledger_counter", "ledger_hash")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTALLATION_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    CLOCK_AT_FIELD_NUMBER: _ClassVar[int]
    CLOCK_TRUSTED_FIELD_NUMBER: _ClassVar[int]
    SERVES_FIELD_NUMBER: _ClassVar[int]
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REASON_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    PENDING_RECORDS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_COUNTER_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HASH_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    agent_version: str
    installation: str
    boot: int
    clock_at: float
    clock_trusted: bool
    serves: str
    shadows: str
    counter: int
    healthy: bool
    refused: str
    refused_reason: str
    holds: _containers.RepeatedScalarFieldContainer[str]
    pending_records: int
    conditions: Conditions
    ledger_counter: int
    ledger_hash: str
    def __init__(self, protocol: _Optional[int] = ..., agent_version: _Optional[str] = ..., installation: _Optional[str] = ..., boot: _Optional[int] = ..., clock_at: _Optional[float] = ..., clock_trusted: _Optional[bool] = ..., serves: _Optional[str] = ..., shadows: _Optional[str] = ..., counter: _Optional[int] = ..., healthy: _Optional[bool] = ..., refused: _Optional[str] = ..., refused_reason: _Optional[str] = ..., holds: _Optional[_Iterable[str]] = ..., pending_records: _Optional[int] = ..., conditions: _Optional[_Union[Conditions, _Mapping]] = ..., ledger_counter: _Optional[int] = ..., ledger_hash: _Optional[str] = ...) -> None: ...

class Conditions(_message.Message):
    __slots__ = ("on_power", "metered", "temperature_c", "free_bytes", "num_labelled")
    ON_POWER_FIELD_NUMBER: _ClassVar[int]
    METERED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_LABELLED_FIELD_NUMBER: _ClassVar[int]
    on_power: bool
    metered: bool
    temperature_c: float
    free_bytes: int
    num_labelled: int
    def __init__(self, on_power: _Optional[bool] = ..., metered: _Optional[bool] = ..., temperature_c: _Optional[float] = ..., free_bytes: _Optional[int] = ..., num_labelled: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("protocol", "assignment", "server_at", "next_s", "trust_version", "slot_s", "evaluation", "annotations", "notice")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    SERVER_AT_FIELD_NUMBER: _ClassVar[int]
    NEXT_S_FIELD_NUMBER: _ClassVar[int]
    TRUST_VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOT_S_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    assignment: bytes
    server_at: float
    next_s: float
    trust_version: int
    slot_s: float
    evaluation: bytes
    annotations: bool
    notice: bytes
    def __init__(self, protocol: _Optional[int] = ..., assignment: _Optional[bytes] = ..., server_at: _Optional[float] = ..., next_s: _Optional[float] = ..., trust_version: _Optional[int] = ..., slot_s: _Optional[float] = ..., evaluation: _Optional[bytes] = ..., annotations: _Optional[bool] = ..., notice: _Optional[bytes] = ...) -> None: ...

class AnnotateRequest(_message.Message):
    __slots__ = ("protocol", "outcomes")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    outcomes: _containers.RepeatedCompositeFieldContainer[AnnotationOutcome]
    def __init__(self, protocol: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[AnnotationOutcome, _Mapping]]] = ...) -> None: ...

class AnnotationOutcome(_message.Message):
    __slots__ = ("number", "known", "heuristics")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    HEURISTICS_FIELD_NUMBER: _ClassVar[int]
    number: int
    known: bool
    heuristics: _containers.RepeatedCompositeFieldContainer[HeuristicOutcome]
    def __init__(self, number: _Optional[int] = ..., known: _Optional[bool] = ..., heuristics: _Optional[_Iterable[_Union[HeuristicOutcome, _Mapping]]] = ...) -> None: ...

class HeuristicOutcome(_message.Message):
    __slots__ = ("source", "agreed")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    source: str
    agreed: bool
    def __init__(self, source: _Optional[str] = ..., agreed: _Optional[bool] = ...) -> None: ...

class AnnotateReply(_message.Message):
    __slots__ = ("protocol", "annotations")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    annotations: _containers.RepeatedCompositeFieldContainer[Annotation]
    def __init__(self, protocol: _Optional[int] = ..., annotations: _Optional[_Iterable[_Union[Annotation, _Mapping]]] = ...) -> None: ...

class Annotation(_message.Message):
    __slots__ = ("number", "of", "label")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    number: int
    of: str
    label: int
    def __init__(self, number: _Optional[int] = ..., of: _Optional[str] = ..., label: _Optional[int] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("boot", "priority", "sequence", "at", "monotonic_s", "payload")
    BOOT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    MONOTONIC_S_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    boot: int
    priority: int
    sequence: int
    at: float
    monotonic_s: float
    payload: bytes
    def __init__(self, boot: _Optional[int] = ..., priority: _Optional[int] = ..., sequence: _Optional[int] = ..., at: _Optional[float] = ..., monotonic_s: _Optional[float] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("boot", "priority", "first", "last")
    BOOT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    boot: int
    priority: int
    first: int
    last: int
    def __init__(self, boot: _Optional[int] = ..., priority: _Optional[int] = ..., first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class TelemetryBatch(_message.Message):
    __slots__ = ("protocol", "installation", "boot", "oldest_boot", "batch", "sent_at", "sent_monotonic_s", "records", "gaps")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    INSTALLATION_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    OLDEST_BOOT_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    SENT_MONOTONIC_S_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    installation: str
    boot: int
    oldest_boot: int
    batch: int
    sent_at: float
    sent_monotonic_s: float
    records: _containers.RepeatedCompositeFieldContainer[Record]
    gaps: _containers.RepeatedCompositeFieldContainer[Gap]
    def __init__(self, protocol: _Optional[int] = ..., installation: _Optional[str] = ..., boot: _Optional[int] = ..., oldest_boot: _Optional[int] = ..., batch: _Optional[int] = ..., sent_at: _Optional[float] = ..., sent_monotonic_s: _Optional[float] = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., gaps: _Optional[_Iterable[_Union[Gap, _Mapping]]] = ...) -> None: ...

class TelemetryAck(_message.Message):
    __slots__ = ("batch", "num_fresh", "num_repeated", "refused_records", "refused_gaps")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    NUM_FRESH_FIELD_NUMBER: _ClassVar[int]
    NUM_REPEATED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_GAPS_FIELD_NUMBER: _ClassVar[int]
    batch: int
    num_fresh: int
    num_repeated: int
    refused_records: _containers.RepeatedScalarFieldContainer[int]
    refused_gaps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, batch: _Optional[int] = ..., num_fresh: _Optional[int] = ..., num_repeated: _Optional[int] = ..., refused_records: _Optional[_Iterable[int]] = ..., refused_gaps: _Optional[_Iterable[int]] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("report", "labels", "alert", "refreshed", "evaluation")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ALERT_FIELD_NUMBER: _ClassVar[int]
    REFRESHED_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    report: DeviceReport
    labels: LabelReport
    alert: Alert
    refreshed: Refreshed
    evaluation: EvaluationAnswer
    def __init__(self, report: _Optional[_Union[DeviceReport, _Mapping]] = ..., labels: _Optional[_Union[LabelReport, _Mapping]] = ..., alert: _Optional[_Union[Alert, _Mapping]] = ..., refreshed: _Optional[_Union[Refreshed, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationAnswer, _Mapping]] = ...) -> None: ...

class DeviceReport(_message.Message):
    __slots__ = ("package", "shadow", "slot", "row", "bins", "features", "violations", "outputs", "confidence", "entropy", "latency", "kpis", "distance", "gap", "bases")
    class KpisEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Kpi
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Kpi, _Mapping]] = ...) -> None: ...
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    KPIS_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    BASES_FIELD_NUMBER: _ClassVar[int]
    package: str
    shadow: bool
    slot: int
    row: int
    bins: str
    features: _containers.RepeatedScalarFieldContainer[int]
    violations: _containers.RepeatedScalarFieldContainer[int]
    outputs: _containers.RepeatedScalarFieldContainer[int]
    confidence: _containers.RepeatedScalarFieldContainer[int]
    entropy: _containers.RepeatedScalarFieldContainer[int]
    latency: _containers.RepeatedScalarFieldContainer[int]
    kpis: _containers.MessageMap[str, Kpi]
    distance: _containers.RepeatedScalarFieldContainer[int]
    gap: _containers.RepeatedScalarFieldContainer[float]
    bases: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, package: _Optional[str] = ..., shadow: _Optional[bool] = ..., slot: _Optional[int] = ..., row: _Optional[int] = ..., bins: _Optional[str] = ..., features: _Optional[_Iterable[int]] = ..., violations: _Optional[_Iterable[int]] = ..., outputs: _Optional[_Iterable[int]] = ..., confidence: _Optional[_Iterable[int]] = ..., entropy: _Optional[_Iterable[int]] = ..., latency: _Optional[_Iterable[int]] = ..., kpis: _Optional[_Mapping[str, Kpi]] = ..., distance: _Optional[_Iterable[int]] = ..., gap: _Optional[_Iterable[float]] = ..., bases: _Optional[_Iterable[int]] = ...) -> None: ...

class Kpi(_message.Message):
    __slots__ = ("total", "weight")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    total: float
    weight: float
    def __init__(self, total: _Optional[float] = ..., weight: _Optional[float] = ...) -> None: ...

class LabelReport(_message.Message):
    __slots__ = ("package", "shadow", "slot", "row", "confusion", "error", "calibration", "delay", "log_loss")
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    LOG_LOSS_FIELD_NUMBER: _ClassVar[int]
    package: str
    shadow: bool
    slot: int
    row: int
    confusion: _containers.RepeatedScalarFieldContainer[int]
    error: _containers.RepeatedScalarFieldContainer[float]
    calibration: _containers.RepeatedScalarFieldContainer[int]
    delay: _containers.RepeatedScalarFieldContainer[int]
    log_loss: int
    def __init__(self, package: _Optional[str] = ..., shadow: _Optional[bool] = ..., slot: _Optional[int] = ..., row: _Optional[int] = ..., confusion: _Optional[_Iterable[int]] = ..., error: _Optional[_Iterable[float]] = ..., calibration: _Optional[_Iterable[int]] = ..., delay: _Optional[_Iterable[int]] = ..., log_loss: _Optional[int] = ...) -> None: ...

class Alert(_message.Message):
    __slots__ = ("kind", "package", "detail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: str
    package: str
    detail: str
    def __init__(self, kind: _Optional[str] = ..., package: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Refreshed(_message.Message):
    __slots__ = ("refresh", "package", "verdict")
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    refresh: int
    package: str
    verdict: str
    def __init__(self, refresh: _Optional[int] = ..., package: _Optional[str] = ..., verdict: _Optional[str] = ...) -> None: ...

class EvaluationAnswer(_message.Message):
    __slots__ = ("evaluation", "failure", "paired", "loss", "sound", "confusion", "calibration", "segment", "segment_loss", "broken")
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PAIRED_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SOUND_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_LOSS_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    evaluation: str
    failure: str
    paired: _containers.RepeatedScalarFieldContainer[int]
    loss: _containers.RepeatedScalarFieldContainer[int]
    sound: _containers.RepeatedScalarFieldContainer[int]
    confusion: _containers.RepeatedScalarFieldContainer[int]
    calibration: _containers.RepeatedScalarFieldContainer[int]
    segment: _containers.RepeatedScalarFieldContainer[int]
    segment_loss: _containers.RepeatedScalarFieldContainer[int]
    broken: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, evaluation: _Optional[str] = ..., failure: _Optional[str] = ..., paired: _Optional[_Iterable[int]] = ..., loss: _Optional[_Iterable[int]] = ..., sound: _Optional[_Iterable[int]] = ..., confusion: _Optional[_Iterable[int]] = ..., calibration: _Optional[_Iterable[int]] = ..., segment: _Optional[_Iterable[int]] = ..., segment_loss: _Optional[_Iterable[int]] = ..., broken: _Optional[_Iterable[int]] = ...) -> None: ...

class ArtifactRequest(_message.Message):
    __slots__ = ("protocol", "digest", "trust_file", "offset", "sealed")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRUST_FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    digest: str
    trust_file: str
    offset: int
    sealed: bool
    def __init__(self, protocol: _Optional[int] = ..., digest: _Optional[str] = ..., trust_file: _Optional[str] = ..., offset: _Optional[int] = ..., sealed: _Optional[bool] = ...) -> None: ...

class ArtifactChunk(_message.Message):
    __slots__ = ("content", "sealed")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    sealed: bool
    def __init__(self, content: _Optional[bytes] = ..., sealed: _Optional[bool] = ...) -> None: ...
