"""What the simulation gate is told of a campaign: the file that the coordinator writes and `python -m sim gate` reads.

Rules of this file:
    * The campaign's own settings, as its definition holds them: how devices train, cohorts, rounds, clipping, noise.
    * Files stand beside it, named without their folder, so that the folder can be carried to another machine.
    * Nothing of a device is in it but counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.core.build import build, plain
from fedretrain.core.checks import require
from fedretrain.core.errors import DataError
from fedretrain.server.campaign_rules import CampaignRules  # noqa: TC001 - `core.build` reads the annotations
from fedretrain.training.plan import TrainingPlan  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "fedretrain.replayorder"


@dataclass(frozen=True)
class ReplayOrder:
    """A campaign to replay.

    Attributes:
        campaign: Its name.
        plan: How devices train.
        rules: How rounds are run.
        num_rounds: Rounds of the campaign.
        interval_s: From a round's beginning to the next one's, as it ran.
        seed: Of cohorts and local training.
        num_devices: Of the simulated fleet.
        num_sites: Over so many sites.
        num_types: And device types.
        devices_per_person: Under the unit `person`; 0: a device is the unit, or a recording.
        epsilon: What the campaign spent; None without differential privacy.
        champion: File of every parameter of what serves (safetensors).
        base: File of the shared parameters that the campaign began with.
        features: File of the package's pipeline, fitted, with its schema (JSON).
        pool: File of labelled rows, as of a pool (safetensors).
        outputs: Names of the outputs.
        format: Of the file.
    """

    campaign: str
    plan: TrainingPlan
    rules: CampaignRules
    num_rounds: int
    interval_s: float
    seed: int
    num_devices: int
    num_sites: int
    num_types: int
    outputs: tuple[str, ...]
    devices_per_person: int = 0
    epsilon: float | None = None
    champion: str = "champion.safetensors"
    base: str = "base.safetensors"
    features: str = "features.json"
    pool: str = "pool.safetensors"
    format: str = FORMAT

    def __post_init__(self) -> None:
        require(self.format == FORMAT, f"{self.format!r} cannot be read", key="format", fix=FORMAT)
        for name in ("champion", "base", "features", "pool"):
            value = getattr(self, name)
            require("/" not in value and value not in ("", ".", ".."), f"{value!r} is no file name", key=name)

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(plain(self), indent=2, sort_keys=True) + "\n"


def read_order(path: Path) -> ReplayOrder:
    """The order in a file.

    Raises:
        DataError: If the file cannot be read.
        ConfigError: If it says what cannot be.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"no campaign to replay: {error}", where=str(path), fix="name a file that a coordinator wrote"
        ) from error
    return build(ReplayOrder, values, where=str(path))
