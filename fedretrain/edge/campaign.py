"""Training campaigns on a device: the children that a signed invitation asks for, and what they train on.

Rules of this file:
    * One campaign at a time, one SuperNode for all logical devices of the agent, with the first device's key.
    * The children read files (`training_data.FolderData`) that this fills from the devices' buffers; the agent's database is
      open in one process alone. What was given is committed to (`lineage`) before it is given.
    * Personal state that training leaves is taken over as a start: it is used once it proved no worse than the global model
      beside the version that is served.
    * Outside of a campaign nothing of this costs anything.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError, FedretrainError
from fedretrain.core.ids import ClientId
from fedretrain.core.params import Layout
from fedretrain.edge import personal
from fedretrain.edge.erasing import CAMPAIGN
from fedretrain.edge.example_ledger import LEDGER
from fedretrain.edge.example_privacy import Account
from fedretrain.edge.joining import supernode_key
from fedretrain.edge.personal import Personal
from fedretrain.edge.supernode import CampaignProcesses, Invitation, NodeKeys, TrainingLimits
from fedretrain.edge.training_data import FolderData
from fedretrain.training.personal import personal_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedretrain.artifacts.assignment import CampaignInvite
    from fedretrain.edge.config import EdgeConfig
    from fedretrain.edge.device import DeviceRuntime

FILL_S = 60.0
"""How often what became known is given to the children."""
_log = logging.getLogger(__name__)


@dataclass
class Running:
    """A campaign that runs.

    Attributes:
        invite: Signed.
        processes: Its children.
        data: What they train on.
        filled_s: Monotonic instant at which that was written last.
        given: Example ids by device, as committed to.
    """

    invite: CampaignInvite
    processes: CampaignProcesses
    data: FolderData
    filled_s: float
    given: dict[str, tuple[str, ...]]


class Campaigns:
    """Starts and ends campaigns for the devices of an agent.

    Args:
        config: The agent's.
        devices: By name.
    """

    def __init__(self, config: EdgeConfig, devices: Mapping[str, DeviceRuntime]) -> None:
        self._config, self._devices = config, devices
        self._folder = Path(config.folder) / CAMPAIGN
        self.running: Running | None = None

    def ensure(self, now_s: float) -> None:
        """Run the children of the campaign that is on, and no others. Call it every second or so.

        Args:
            now_s: Monotonic seconds.
        """
        invite = self._invited()
        running = self.running
        if running is not None and (invite is None or invite.campaign != running.invite.campaign):
            self.stop()
            running = None
        if invite is None:
            return
        try:
            if running is None:
                running = self.running = self._start(invite, now_s)
            elif now_s - running.filled_s >= FILL_S or self._joining(running):
                running.filled_s = now_s
                self._fill(running)
        except (FedretrainError, OSError) as error:
            _log.warning("the campaign %s does not start: %s", invite.campaign, error)
            return
        running.processes.ensure(now_s)

    def stop(self) -> None:
        """End the children and take over what they learnt; may be called again."""
        running, self.running = self.running, None
        if running is None:
            return
        running.processes.stop()
        for device in self._trainers():
            try:
                self._collect(running, device)
            except (FedretrainError, OSError) as error:
                _log.warning("%s: what training learnt is lost: %s", device.joined.device, error)
        shutil.rmtree(self._folder, ignore_errors=True)  # the examples have their place in the database

    def _joining(self, running: Running) -> bool:
        """Whether a device was invited since the examples were written: each hears of it in its own heartbeat."""
        invites = ((device, device.remembered.value.invite) for device in self._trainers())
        return any(
            invite is not None
            and invite.campaign == running.invite.campaign
            and device.device.name not in running.given
            for device, invite in invites
        )

    def _trainers(self) -> list[DeviceRuntime]:
        # A copy, in one step: a device that enrols late is added by another thread.
        return [device for device in list(self._devices.values()) if device.device.trains]

    def _invited(self) -> CampaignInvite | None:
        """The campaign that is on, of the first device that is invited to one."""
        for device in self._trainers():
            invite = device.remembered.value.invite
            if invite is not None and invite.begins_at <= device.store.clock.look().guess_at < invite.ends_at:
                return invite
        return None

    def _start(self, invite: CampaignInvite, now_s: float) -> Running:
        training = self._config.training
        keys = NodeKeys(insecure=True)
        if not training.insecure:
            first = Path(self._config.folder) / self._config.devices[0].name
            keys = NodeKeys(supernode_key(first), Path(self._config.authority))
        data = self._folder / "data"
        processes = CampaignProcesses(
            Invitation(invite.campaign, invite.server, invite.bundle),
            keys,
            data,
            self._folder,
            TrainingLimits(training.supernode_bytes, training.app_bytes),
        )
        running = Running(invite, processes, FolderData(data), now_s, {})
        self._fill(running)
        return running

    def _fill(self, running: Running) -> None:
        """Write what each invited device has, once it is committed to."""
        for device in self._trainers():
            invite = device.remembered.value.invite
            if invite is None or invite.campaign != running.invite.campaign:
                continue
            store, client = device.store, ClientId(device.joined.number)
            device.flush()
            with store.database.mutex:
                now = store.clock.look().guess_at
                ids, data = store.served.labelled(
                    now, device.answering.preprocessing, self._config.training.min_confidence
                )
                if ids != running.given.get(device.device.name):
                    store.lineage.used(invite.campaign, ids, now)
                    running.given[device.device.name] = ids
            running.data.put_account(client, self._account(device))
            running.data.put_examples(client, data)
            if running.data.personal(client) is None:
                self._give_personal(running, device, client)

    def _account(self, device: DeviceRuntime) -> Account:
        """Where a device keeps what example-level DP has cost it."""
        budget, model = self._config.training.example_budget, device.answering.serving.model
        has_local = model is not None and model.package.pipeline.has_local
        return Account(str(device.folder / LEDGER), budget.epsilon, budget.delta, has_local)

    def _give_personal(self, running: Running, device: DeviceRuntime, client: ClientId) -> None:
        model = device.answering.serving.model
        held = personal.load(device.personal_folder, device.stream)
        if model is None or held is None:
            return
        manifest = model.package.manifest
        layout = personal_layout(
            manifest.personalization.method, model.package.weights, manifest.personalization.patterns
        )
        if layout == Layout.of(held.params):
            running.data.commit_personal(client, layout.pack(held.params), manifest.version)

    def _collect(self, running: Running, device: DeviceRuntime) -> None:
        """Take over the personal state that training left, as a start for the next re-fit."""
        client = ClientId(device.joined.number)
        row = running.data.personal(client, noised=True)
        row = running.data.personal(client) if row is None else row
        model = device.answering.serving.model
        if row is None or model is None:
            return
        how = model.package.manifest.personalization
        layout = personal_layout(how.method, model.package.weights, how.patterns)
        if row.shape != (layout.size,) or not np.isfinite(row).all():
            raise DataError("it is not the state of this model", where="personal state")
        base = f"campaign/{running.invite.campaign}"
        params = {name: np.asarray(leaf, dtype=np.float32) for name, leaf in layout.unpack(row).items()}
        store = device.store
        personal.save(
            device.personal_folder, device.stream, Personal(params, base, store.clock.look().guess_at)
        )
        device.remembered.note(lambda told: told.beginning_from(base))
