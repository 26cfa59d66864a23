"""Folders of images and masks, augmentation and batches."""
