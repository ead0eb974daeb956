"""How client updates are combined; numpy."""
