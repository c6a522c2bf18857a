"""Other methods of semi-supervised segmentation, one a file, to compare with."""
