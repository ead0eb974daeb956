"""One tree of errors.

Rules of this file:
    * What a person did wrong is a `UserError`: one line that says what, where and how to mend it. Command
      lines print it without a traceback and exit with a non-zero status.
    * What a device did wrong is a value (`ClientFailure` in `core.types`), never an exception.
    * Everything else that raises is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class FedretrainError(Exception):
    """The root of every error that this package raises on purpose."""


class UserError(FedretrainError):
    """Something a person can mend.

    Args:
        what: What is wrong.
        where: The file, key, column or option at fault.
        fix: What to do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        """One line: what, where, how to mend it."""
        where = f" [{self.where}]" if self.where else ""
        fix = f" - {self.fix}" if self.fix else ""
        return f"{self.what}{where}{fix}".replace("\n", " ")


class ConfigError(UserError):
    """A configuration that cannot be run."""


class DataError(UserError):
    """Data that is missing, damaged or not what its schema says."""


class PrivacyError(UserError):
    """A configuration in which a privacy claim would be false, or a budget would be exceeded."""


class UnsupportedModelError(UserError):
    """A model that an executor or a privacy engine cannot serve; names the layer and who can."""
