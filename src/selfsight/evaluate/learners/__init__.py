"""What is fitted on an encoder so that it can be judged: probes, heads, detectors, neighbours."""
