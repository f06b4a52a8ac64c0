"""The paper: what heads write, their pursuit, ranking and controls, intervention and measures."""
