"""From rounds of measurements to verdicts: numpy only, so that all of it is tested anywhere."""
