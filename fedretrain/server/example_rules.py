"""What a campaign with example-level DP on its devices must not do: refused when the training file is read or checked.

Rules of this file:
    * The same refusals as on the device (`edge.example_privacy`) and in the simulator (`sim.arm`); DESIGN section 6 says why.
    * `check_plan` needs no torch, so it runs whenever the file is read. `check_whole` builds the model, for ``config check``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.core.types import MethodKind
from fedretrain.server.campaign_rules import AggregatorName

if TYPE_CHECKING:
    from fedretrain.features.pipeline import Pipeline
    from fedretrain.server.campaign_rules import CampaignRules
    from fedretrain.training.plan import TrainingPlan

_WHERE = "plan.training.example_dp"


def check_plan(plan: TrainingPlan, rules: CampaignRules) -> None:
    """Refuse what makes an example-level claim false.

    Raises:
        ConfigError: If devices could not draw its noise.
        PrivacyError: Naming what is wrong.
    """
    if plan.training.example_dp is None:
        return
    if not plan.training.claims_examples:
        raise PrivacyError(
            "example-level DP without noise claims nothing",
            where=f"{_WHERE}.noise_multiplier",
            fix="set a noise multiplier above 0, or leave example_dp out",
        )
    if plan.method.kind is MethodKind.FEDREP:
        raise PrivacyError(
            "example-level DP cannot serve fedrep: its head is fitted apart from the shared layers and carries every "
            "example into their gradients",
            where="plan.method.kind",
            fix="use fedper (clipped and noised jointly), ditto, apfl, finetune or fedavg",
        )
    if rules.step.aggregator is not AggregatorName.MEAN:
        raise PrivacyError(
            f"the aggregator {rules.step.aggregator} asks devices for numbers of examples and losses, which would be sent "
            "without noise",
            where="rules.step.aggregator",
            fix="use the mean with example-level DP",
        )
    if plan.executor != "each":
        raise ConfigError(
            f"the executor {plan.executor} draws example-level noise from seeds, for simulation",
            where="plan.executor",
            fix="use each on devices",
        )


def check_whole(plan: TrainingPlan, pipeline: Pipeline | None) -> None:
    """Refuse a model or a pipeline that example-level DP cannot serve.

    Args:
        plan: How devices train.
        pipeline: Of the population's features; None where none is named.

    Raises:
        PrivacyError: If inputs are scaled by a device's own data.
        UnsupportedModelError: If a layer has no gradients by example, naming it.
    """
    if plan.training.example_dp is None:
        return
    if pipeline is not None and pipeline.has_local:
        raise PrivacyError(
            "a device's own scaler carries every example into the inputs of all others",
            where=_WHERE,
            fix="use features without a local scaler",
        )
    _ = plan.make(secret=True).executor
