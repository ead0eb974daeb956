"""The apps that `flwr run .` starts: our rounds on Flower's own simulation, configured by `[tool.flwr.app.config]`.

Rules of this file:
    * Which experiment, and what is changed in it, are words of the run configuration: `experiment`, `overrides`.
    * The apps only connect: the server's part is `sim.experiment` over the grid, a device's is `sim.flower_device`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

os.environ.setdefault(
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
)  # or Ray, which Flower starts next, talks about it

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, _context: Context) -> Message:
    """Play the device that the message is for."""
    import torch

    from sim.flower_device import answer

    torch.set_num_threads(1)  # clients are small: processes share the cores
    return Message(answer(message.content), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configured experiment on the grid's nodes and write its folder."""
    import shlex

    from sim.experiment import run_overrides

    config = context.run_config
    words = [f"experiment={config['experiment']}", *shlex.split(str(config["overrides"])), "runner=flower"]
    run_overrides(words, grid=grid)
