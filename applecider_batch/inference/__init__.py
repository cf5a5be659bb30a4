"""From prepared inputs to five-class logits: predictor, batches, fusion, calibration."""
