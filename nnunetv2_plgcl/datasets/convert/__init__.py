"""From an official download to nnU-Net's raw format: ACDC, KiTS19, CRAG."""
