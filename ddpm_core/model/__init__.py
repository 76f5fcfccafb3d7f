"""The paper's U-Net."""
