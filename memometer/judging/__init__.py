"""Language-model judges: grading, calibration on answers of known correctness, and re-grading."""
