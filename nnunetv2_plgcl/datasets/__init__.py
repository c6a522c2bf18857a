"""Datasets in nnU-Net's layout: splitting them, generating one."""
