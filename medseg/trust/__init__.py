"""Can a result be believed? Scores without ground truth, calibrated to a predicted Dice with a lower bound."""
