"""The process of one central retrain: reads the server's rows, trains, leaves its weights in the store and their digest in a file.

Rules of this file:
    * How it trains is `importing.train_on_pool`'s, as for a first champion.
    * It reads no database and holds no lease: who started it decides whether its result counts.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fedretrain.artifacts.at_rest import StorePlace  # noqa: TC001 - read by `build` at run time
from fedretrain.artifacts.weights import decode_params, encode_params
from fedretrain.core import leash
from fedretrain.core.build import build, plain
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import DataError, UserError
from fedretrain.core.types import ClientData
from fedretrain.features.pipeline import Pipeline
from fedretrain.server.pool import read_pool
from fedretrain.training.plan import TrainingPlan  # noqa: TC001 - read by `build` at run time

ORDERS = "FEDRETRAIN_CENTRAL"
"""Environment variable: the JSON of `CentralOrders`."""
ENDED = "weights"


@dataclass(frozen=True)
class CentralOrders:
    """What the coordinator tells the process.

    Attributes:
        store: Where weights are.
        plan: Model, method and local training.
        num_rounds: Passes of local training over the rows.
        pool: Folder of the rows.
        pool_digest: Which rows they are.
        pipeline: Digest of the fitted features.
        base: Digest of the parameters to begin with; empty: fresh ones.
        out: File for the digest of what was made.
    """

    store: StorePlace
    plan: TrainingPlan
    num_rounds: int
    pool: str
    pool_digest: str
    pipeline: str
    base: str
    out: str

    def to_env(self) -> dict[str, str]:
        """For the process's environment."""
        return {ORDERS: json.dumps(plain(self))}


def retrain(orders: CentralOrders) -> str:
    """Train; the digest of every parameter, in the store.

    Raises:
        DataError: If the rows are others than those of the definition, or training runs away.
        ConfigError: If the base is another model's.
    """
    from fedretrain.server.importing import train_on_pool

    store, pool = orders.store.open(), read_pool(Path(orders.pool))
    if pool.digest != orders.pool_digest:
        raise DataError(
            f"the pool is {pool.digest[:12]} now, the retrain was defined on {orders.pool_digest[:12]}",
            where=orders.pool,
            fix="order a retrain again; put rows into a pool while the coordinator stands still",
        )
    features = Pipeline.from_json(store.get(orders.pipeline).decode())
    start = decode_params(store.get(orders.base)) if orders.base else None
    rows = ClientData(features.apply(pool.x), pool.labelled.label_N)
    tree = train_on_pool(orders.plan.make(start), rows, orders.num_rounds)
    return store.put(encode_params(tree))


def main() -> int:
    """The process that the coordinator starts."""
    leash.watch(os.getppid())
    try:
        orders = build(CentralOrders, json.loads(os.environ[ORDERS]))
        write_whole(Path(orders.out), retrain(orders).encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - its log, whose last line the coordinator reads
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
