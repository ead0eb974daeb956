"""The simulator as a gate: a candidate's aggregation replayed under a fitted fleet's conditions."""
