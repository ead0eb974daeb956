"""Who may order and approve what: roles, as typed data.

Rules of this file:
    * A role names rights and the people who have them. Where there is no role at all, everybody who gives a name has every right.
    * Names are those that orders carry (``--by``), compared as they are written. That an order is the word of whom it
      names is proved before (`server.people`), where that person has a key. Where a role says from which accounts of the operating system
      its people act, the command line asks for that too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedretrain.core.checks import as_tuples, require


class Right(StrEnum):
    """What a person may do."""

    APPROVE_CANARY = "approve_canary"
    APPROVE_RAMP = "approve_ramp"
    APPROVE_CHAMPION = "approve_champion"
    APPROVE_ATTEMPT = "approve_attempt"  # one more attempt at a step that stayed undecided
    APPROVE_CRITICAL = "approve_critical"  # instead of the others, where four eyes are needed
    OPERATE = (
        "operate"  # rollouts, retrains, proposals, withdrawals, devices into quarantine, and into safe mode
    )
    RESTORE = "restore"  # out of safe mode and quarantine, and start again what was stopped


@dataclass(frozen=True)
class Role:
    """What some people may do.

    Attributes:
        may: Rights.
        people: Their names.
        populations: Whose models; empty: all.
        accounts: From which accounts of the operating system; empty: from any.
    """

    may: tuple[Right, ...]
    people: tuple[str, ...]
    populations: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, ["may", "people", "populations", "accounts"])
        require(bool(self.may), "a role without rights", key="may", fix=f"name some of {', '.join(Right)}")
        named = bool(self.people) and all(name.strip() == name and name for name in self.people)
        require(named, "a role for nobody", key="people", fix="name people as they sign their orders (--by)")


@dataclass(frozen=True)
class Roles:
    """All roles.

    Attributes:
        roles: By their names; none: everybody has every right.
    """

    roles: dict[str, Role] = field(default_factory=dict)

    def of(self, population: str) -> Roles:
        """Those that count for a population; where there are roles and none counts for it, nobody has a right."""
        if not self.roles:
            return self
        counting = {
            name: role
            for name, role in self.roles.items()
            if not role.populations or population in role.populations
        }
        return Roles(counting or {"nobody": Role(tuple(Right), ("-",))})

    def holders(self, right: Right) -> tuple[str, ...]:
        """Who has a right, sorted; empty where nobody has, or everybody."""
        return tuple(sorted({p for role in self.roles.values() if right in role.may for p in role.people}))

    def lacks(self, by: str, right: Right, account: str | None = None) -> str:
        """Why somebody may not do something; empty where they may.

        Args:
            by: Who.
            right: To do what.
            account: From which account; None where that is not asked.
        """
        own = [role for role in self.roles.values() if right in role.may and by in role.people]
        if self.roles and not own:
            able = self.holders(right) or ("nobody",)
            has = "has" if len(able) == 1 else "have"
            return f"{by} lacks the right {right}, which {' and '.join(able)} {has}"
        if account is None or not own or any(not role.accounts or account in role.accounts for role in own):
            return ""
        accounts = ", ".join(sorted({one for role in own for one in role.accounts}))
        return f"{by} has the right {right} from the account {accounts} alone, and this is {account}"
