"""Which plans are faster than the table's on this GPU, by regime, under the gate's statistics."""
