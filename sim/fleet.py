"""A fleet: devices and their streams of samples, made when asked for.

Rules of this file:
    * A device's stream is a pure function of (seed, device): the same whatever group and order it is asked in,
      on whatever worker.
    * Nothing is kept per device but a cache bounded in bytes; a million devices need no million objects.
    * Past rows are what a device may learn from; `future` rows are scored and never trained on.
    * A row is trainable at an instant only if it was taken and its label had arrived by then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from fedretrain.core.checks import fraction, not_negative, positive, require
from fedretrain.core.types import ClientData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from fedretrain.core.types import Objective
    from fedretrain.features.pipeline import Pipeline
    from fedretrain.features.schema import Schema
    from sim.devices import Traits
    from sim.sensors.events import DriftEvent


class FleetKind(StrEnum):
    """What a device is."""

    NATURAL = "natural"  # a stream of the data set
    PARTITION = "partition"  # a share of the data set's rows, dealt out once
    VIRTUAL = "virtual"  # a natural stream's rows, re-mounted, with gain and noise: called virtual everywhere
    GENERATED = "generated"  # made from its seed alone, no data set


@dataclass(frozen=True)
class MountConfig:
    """How a virtual device's sensors differ from those of its source: applied to raw signals.

    Attributes:
        rotation_deg: Three-axis groups of the schema are turned by up to this angle about a random axis, all of a
            device by the same (they sit in one case).
        gain_sigma: Lognormal spread of each channel's gain.
        offset_sigma: Spread of the offset of the channels outside three-axis groups, in the channel's standard
            deviations.
        noise_sigma: Added noise, in the channel's standard deviations.
    """

    rotation_deg: float = 20.0
    gain_sigma: float = 0.05
    offset_sigma: float = 0.1
    noise_sigma: float = 0.05

    def __post_init__(self) -> None:
        for name in ("rotation_deg", "gain_sigma", "offset_sigma", "noise_sigma"):
            not_negative(f"fleet.mount.{name}", getattr(self, name))
        require(self.rotation_deg <= 180.0, "is more than half a turn", key="fleet.mount.rotation_deg")


@dataclass(frozen=True)
class GeneratorConfig:
    """Synthetic devices: see `sim.datasets.synthetic.SyntheticFleet`, which makes them.

    Attributes:
        num_samples: Rows of a device, to learn from and to be scored on.
        num_features: Channels of a row.
        num_classes: Classes.
        latent: Dimensions of the space in which the classes lie.
        label_skew: Share of a device's rows that come from its two favourite classes.
        concept_shift: How far a device's classes lie from everybody's, in units of a sample's scatter.
        feature_skew: Spread of the sensors' gain around 1 and of their offset around 0; below 0.3.
        scored_fraction: Share of a device's rows that is scored.
    """

    num_samples: int = 32
    num_features: int = 16
    num_classes: int = 6
    latent: int = 8
    label_skew: float = 0.5
    concept_shift: float = 1.0
    feature_skew: float = 0.1
    scored_fraction: float = 0.25

    def __post_init__(self) -> None:
        for name, least in (("num_features", 1), ("latent", 1), ("num_classes", 2), ("num_samples", 2)):
            require(getattr(self, name) >= least, f"must be at least {least}", key=f"fleet.generator.{name}")
        for name in ("label_skew", "scored_fraction"):
            fraction(f"fleet.generator.{name}", getattr(self, name))
        not_negative("fleet.generator.concept_shift", self.concept_shift)
        not_negative("fleet.generator.feature_skew", self.feature_skew)


@dataclass(frozen=True)
class FleetConfig:
    """How many devices there are and what data they hold.

    Attributes:
        kind: What a device is.
        num_devices: 0: every natural stream. Natural: the first so many. Others: how many are made.
        label_alpha: Concentration of a device's class shares (Dirichlet); small is skewed; 0 for no skew. A
            generated fleet has `generator.label_skew` instead.
        quantity_sigma: Lognormal spread of the number of rows; 0 for none. A virtual or generated device never
            has more than its source, so large draws end there.
        rows_fraction: Virtual: mean share of its source's past rows that a device holds.
        min_rows: Virtual: the fewest past rows of a device (as far as its source has so many).
        num_sites: Sites that made devices are spread over; 0: those of the data.
        num_types: Device types, likewise.
        keep_natural: Virtual: the first devices are the natural streams as they are, the others are virtual.
        remount: Partition: re-mount the signals too (feature skew); the devices are then virtual.
        mount: Virtual: how sensors differ.
        generator: Generated: the synthetic data.
    """

    kind: FleetKind = FleetKind.NATURAL
    num_devices: int = 0
    label_alpha: float = 0.0
    quantity_sigma: float = 0.0
    rows_fraction: float = 1.0
    min_rows: int = 1
    num_sites: int = 0
    num_types: int = 0
    keep_natural: bool = True
    remount: bool = False
    mount: MountConfig = field(default_factory=MountConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)

    def __post_init__(self) -> None:
        for name in ("num_devices", "label_alpha", "quantity_sigma", "num_sites", "num_types"):
            not_negative(f"fleet.{name}", getattr(self, name))
        require(self.num_devices < 2**31, "must be below 2^31", key="fleet.num_devices", fix="make fewer")
        positive("fleet.rows_fraction", self.rows_fraction)
        require(
            self.rows_fraction <= 1.0, f"{self.rows_fraction} is not a fraction", key="fleet.rows_fraction"
        )
        require(self.min_rows >= 1, "must be at least 1", key="fleet.min_rows")
        dealt = self.kind == FleetKind.PARTITION or not self.remount
        require(dealt, "remount goes with kind=partition (virtual devices always are)", key="fleet.remount")
        made_skew = self.kind != FleetKind.GENERATED or not self.label_alpha
        require(made_skew, "generated devices have generator.label_skew instead", key="fleet.label_alpha")
        if self.kind != FleetKind.NATURAL:
            require(
                self.num_devices >= 1,
                f"kind={self.kind} makes devices: say how many",
                key="fleet.num_devices",
            )
        else:
            skewed = (
                self.label_alpha or self.quantity_sigma or self.num_sites or self.num_types or self.remount
            )
            require(
                not skewed,
                "natural devices are as they are",
                key="fleet.kind",
                fix="use kind=partition or kind=virtual",
            )


@dataclass(frozen=True)
class DeviceStream:
    """One device's samples, in time order: sharded, drifted and preprocessed.

    Attributes:
        x: ``[N, *F]`` float32 model inputs, finite.
        y: ``[N]`` int64 class indices or float32 targets.
        event_at: ``[N]`` when each sample was taken, by the device's own clock (which may be skewed).
        label_at: ``[N]`` when its label arrives (true clock); inf if it never does.
        future: ``[N]`` True for rows that are scored and never trained on.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    event_at: NDArray[np.float64]
    label_at: NDArray[np.float64]
    future: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.y)


def trainable_rows(stream: DeviceStream, at: float) -> NDArray[np.bool_]:
    """Rows that may be trained on at the instant `at`: ``[N]`` bool."""
    rows: NDArray[np.bool_] = ~stream.future & (stream.event_at <= at) & (stream.label_at <= at)
    return rows


def trainable(stream: DeviceStream, at: float) -> ClientData:
    """Past rows taken and labelled by the instant `at`."""
    rows = trainable_rows(stream, at)
    return ClientData(stream.x[rows], stream.y[rows])


def scored(stream: DeviceStream) -> ClientData:
    """Future rows: what models are scored on, whatever became of their labels on the device."""
    return ClientData(stream.x[stream.future], stream.y[stream.future])


class Fleet(Protocol):
    """What the loop asks of any fleet."""

    @property
    def num_devices(self) -> int:
        """Devices are 0 to ``num_devices - 1``."""
        ...

    @property
    def num_virtual(self) -> int:
        """Devices made by re-mounting others' signals, or from a seed: they must be called virtual. Natural ones come first."""
        ...

    @property
    def objective(self) -> Objective:
        """What models are trained for."""
        ...

    @property
    def num_outputs(self) -> int:
        """Classes, or 1."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty for regression."""
        ...

    @property
    def schema(self) -> Schema:
        """The raw channels."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """The preprocessing, fitted."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape F of one model input."""
        ...

    def virtual(self, devices: ArrayLike) -> NDArray[np.bool_]:
        """Whether each of devices ``[K]`` is virtual."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what the fleet was made from (data, sharding, drift, labels, seed)."""
        ...

    def traits(self, devices: ArrayLike) -> Traits:
        """Site and type of devices ``[K]``."""
        ...

    def streams(self, devices: ArrayLike) -> list[DeviceStream]:
        """The samples of devices ``[K]``, in order."""
        ...

    def trainable(self, devices: ArrayLike, at: float) -> list[ClientData]:
        """What each of devices ``[K]`` may train on at the instant `at`: `trainable` of its stream."""
        ...

    def truth(self, devices: ArrayLike) -> list[DriftEvent]:
        """The drift injected into devices ``[K]``: exactly the events that their streams carry."""
        ...

    def name(self, device: int) -> str:
        """What to call a device in a report; virtual ones are called so."""
        ...
