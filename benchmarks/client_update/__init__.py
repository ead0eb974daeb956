"""What a simulated client update costs, against Flower, pfl-research, the reference loop and a centralised pass.

``python -m benchmarks.client_update`` runs every engine on the same samples, model, batches and first weights, each in a
process of its own, one after the other, on one thread per process, and prints one JSON line for each case:

    case, unit            what was run; all figures are per client update, but for `cold_start`: the whole training
    cpu_ms, wall_s        per engine, median over rounds and repeats, CPU over the process tree (Ray's workers too);
                          the first round is a warm-up and not counted, but for `cold_start`
    peak_mib              per engine, the most memory of the tree that was seen
    ratio_flower, ratio_pfl, ratio_each   how many times less CPU `batched` takes
    fraction_of_central   speed relative to one centralised pass over the same samples (batch 256, one step each)
    max_abs_difference    of the round's aggregate from the reference's (`each`); null where an engine adds noise of its own
    spread                interquartile range over median of the CPU times; accuracy, versions, cores, note

Engines: `flower` (run_simulation on Ray, an ordinary client app), `pfl` (SimulatedBackend, one process, own virtual
environment), `each`, `batched`, `central`.

Where batching does not help. It stacks clients that run the same code: clients with different architectures, models
with code that torch.func.vmap cannot trace, BatchNorm in training and active Dropout run on `each` (they are refused by
name). Cohorts of a few clients gain little: a step of a block costs about 0.1 ms of Python and dispatch before its first
client, which needs some 50 small models to be paid for. Large layers (a stride-1 CNN on long signals) are bound by
arithmetic, which batching does not lessen: there the gain over the loop is a small factor, and over Flower its overhead.
Fleets of very unequal clients end with blocks in which few are still active.
"""
