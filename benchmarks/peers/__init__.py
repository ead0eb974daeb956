"""The peers that our executors are measured against, each an ordinary program of its own library."""
