"""Pseudo-labels of whole cases as an ordinary nnU-Net dataset: predict, score, filter, write."""
