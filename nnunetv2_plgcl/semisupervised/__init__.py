"""Semi-supervised training on nnU-Net, whatever the method."""
