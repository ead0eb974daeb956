"""Which devices are one person's, as they enrolled: what the privacy unit `person` is charged by.

Rules of this file:
    * A person is known in the ledger by the number of the first device that enrolled for them. Numbers never change, and a device
      never changes its person (`fleet.enrol`), so a person's charges add up over campaigns, whatever joins.
    * Under the unit `person` a campaign begins only where every device that may come names one: two devices without would be one
      person's, or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.mechanism import Unit
from fedretrain.server.fleet import outside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.server.campaign_rules import PrivacyRule
    from fedretrain.server.fleet import Device

_NAMED = 5


def check_persons(devices: Sequence[Device], privacy: PrivacyRule | None) -> None:
    """Refuse the unit `person` where somebody's person is not known.

    Args:
        devices: Everybody who ever enrolled, by number.
        privacy: The claim; None: there is none.

    Raises:
        PrivacyError: Naming the devices; one that is only watched never comes, and a retired one not again.
    """
    if privacy is None or privacy.unit is not Unit.PERSON:
        return
    absent = frozenset(outside(devices))
    nameless = [one.device for one in devices if one.number not in absent and not one.traits.person]
    if nameless:
        more = f" and {len(nameless) - _NAMED} more" if len(nameless) > _NAMED else ""
        raise PrivacyError(
            f"nobody says whose devices these are: {', '.join(nameless[:_NAMED])}{more}",
            where="privacy.unit",
            fix="retire them and enrol each under another name, with its person in edge.toml; or claim the device",
        )


def units_of(devices: Sequence[Device], privacy: PrivacyRule | None) -> tuple[int, ...]:
    """The ledger's unit of each device; empty where that is the device itself. Who names no person is a unit alone.

    Args:
        devices: Everybody who ever enrolled, by number.
        privacy: The claim; None: there is none.
    """
    if privacy is None or privacy.unit is not Unit.PERSON:
        return ()
    first: dict[str, int] = {}
    return tuple(
        first.setdefault(one.traits.person, one.number) if one.traits.person else one.number
        for one in devices
    )
