"""Boxes, masks and poses: torchvision's R-CNN detectors with non-local blocks (section 6 of the paper)."""
