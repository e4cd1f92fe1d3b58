"""Images from scans that are really undersampled."""
