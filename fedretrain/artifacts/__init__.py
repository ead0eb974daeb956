"""What a release consists of: content-addressed files, canonical weights and int8 deltas between versions."""
