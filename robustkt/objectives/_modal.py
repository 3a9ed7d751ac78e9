"""What trainings of several modes have in common."""

from __future__ import annotations

from dataclasses import dataclass

from robustkt.adapters import NONE, check_kinds
from robustkt.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Modal:
    """The fields of every training of several modes."""

    adapter: str = "dualparams"  # kinds joined by +; none = everything shared, which is what adapters are compared with
    frozen: bool = False  # the adapters alone are trained, on the network that the training starts from

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", check_kinds(self.adapter))  # in one spelling: it is part of the recipe
        if self.frozen and self.adapter == NONE:
            raise UsageError("without adapters nothing would be trained", "Leave frozen out, or name an adapter.")

    @property
    def domains(self) -> tuple[str, ...]:
        """Their names, the default mode's last."""
        return ()
